"""Library exceptions as input errors."""

import pytest

from pipeline.errors import InputError
from stages.data.input_errors import as_input_error


def translate(error):
    return InputError(f"cannot read: {error}") if isinstance(error, OSError) else None


def test_a_translated_exception_is_raised_with_its_cause():
    with pytest.raises(InputError, match="cannot read: gone") as caught, as_input_error(translate):
        raise OSError("gone")
    assert isinstance(caught.value.__cause__, OSError)


def test_a_cause_with_secrets_is_dropped():
    with pytest.raises(InputError) as caught, as_input_error(translate, hide_cause=True):
        raise OSError("gone")
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


@pytest.mark.parametrize("error", [InputError("as it is"), KeyError("unknown")])
def test_other_exceptions_pass_unchanged(error):
    with pytest.raises(type(error)) as caught, as_input_error(translate):
        raise error
    assert caught.value is error
