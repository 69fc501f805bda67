"""Kernels where compiled code cannot be kept."""

from numba.core import caching

from stages.text.numba_kernels import kernel


def test_where_nothing_can_be_written_a_kernel_is_compiled_all_the_same(monkeypatch):
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])

    @kernel("int64(int64)")
    def doubled(number):
        return 2 * number

    assert doubled(21) == 42
