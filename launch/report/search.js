// Shows the texts of a browser panel that hold every word of its search box.
for (const box of document.querySelectorAll(".browser")) {
  const items = [...box.querySelectorAll("details")].map(item => [item, item.textContent.toLowerCase()]);
  const search = () => {
    const words = box.querySelector("input").value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = items.filter(([item, text]) => !(item.hidden = !words.every(word => text.includes(word))));
    box.querySelector(".found").textContent = `${found.length} shown`;
  };
  box.querySelector("input").addEventListener("input", search);
}
