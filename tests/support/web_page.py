"""A web page with a menu and a footer, and its main content."""

PAGE = (
    "<html><head><meta charset={}><title>T</title><script>x = 'hidden'</script></head><body>"
    "<nav><a href=/>Home</a> <a href=/b>About us</a></nav><article><h1>Café</h1>"
    "<p>The first paragraph is long enough to be the main content of this page, is it not?</p>"
    "<p>The second &amp; last one follows.</p></article><footer>Copyright</footer></body></html>"
)
TEXT = (
    "Café\n\nThe first paragraph is long enough to be the main content of this page, is it not?"
    "\n\nThe second & last one follows."
)
