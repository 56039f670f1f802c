"""What `import ssl_selmix` offers."""

import subprocess
import sys

import pytest

import ssl_selmix


@pytest.mark.slow
def test_what_documentation_names_can_be_reached() -> None:
    code = (
        "import ssl_selmix\n"
        "for name in ('gains.gain_matrix', 'objectives.get', 'label_shift.estimate', 'predict',\n"
        "             'image_files.find', 'finetune', 'load'):\n"
        "    found = ssl_selmix\n"
        "    for part in name.split('.'):\n"
        "        found = getattr(found, part)\n"
        "    assert callable(found), name\n"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_what_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'gain'"):
        _ = ssl_selmix.gain
    for name in ("__wrapped__", "a.b", ".x", ""):
        assert not hasattr(ssl_selmix, name)
