# SPDX-License-Identifier: Apache-2.0
"""The tutorial's notebook in a kernel of Jupyter, as a reader runs it."""

import pytest
from scripts.notebook import NOTEBOOK

nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
import nbformat  # noqa: E402  (comes with nbclient)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning:(zmq|jupyter_client|nbformat|tornado).*")
def test_every_cell_runs():
    book = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(book)
    for cell in book.cells:  # what a network costs is measured by other tests, for seconds each
        cell.source = cell.source.replace("--measure-seconds 0.1", "--measure-seconds 0").replace(
            "--seeds 3", "--seeds 1"
        )
    nbclient.NotebookClient(book, timeout=600, resources={"metadata": {"path": NOTEBOOK.parent}}).execute()
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    outputs = ["".join(output.get("text", "") for output in cell.outputs) for cell in cells]
    said = "\n".join(outputs)
    assert "48 of 50 layers become ODConv" in said and "runs/photos/report.html" in said
    static, dynamic = (
        line.split() for line in said.splitlines() if line.startswith(("static 0.", "static 1.", "dynamic"))
    )
    assert float(static[1]) > 0.5 and float(dynamic[1]) > 0.5  # of two classes
    assert all("Traceback" not in output for output in outputs)
