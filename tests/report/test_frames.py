"""Tables of pictures, and flow as colour."""

import torch

from convary.report.frames import diverging, draw_rows, flow_colors


def test_a_table_with_gaps_is_written(tmp_path):
    gray, color = torch.rand(1, 8, 12), torch.randint(0, 256, (3, 8, 12), dtype=torch.uint8)
    path = draw_rows(
        [("one", [gray, color]), ("two", [None, gray])], tmp_path / "table.png", columns=["a", "b"], note="n"
    )
    assert path.read_bytes().startswith(b"\x89PNG")


def test_directions_have_their_colours():
    flow = torch.tensor([[0.0, 0.0, 0.0, 4.0], [0.0, 2.0, -2.0, 0.0]]).reshape(2, 1, 4)
    still, right, left, down = flow_colors(flow, 2.0)[:, 0].T
    assert still.tolist() == [1, 1, 1]
    assert right.tolist() == [1, 0, 0], "red"
    torch.testing.assert_close(left, torch.tensor([0.0, 1.0, 1.0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(down, torch.tensor([0.5, 1.0, 0.0]), atol=1e-5, rtol=0)


def test_signs_have_their_colours():
    below, zero, above = diverging(torch.tensor([[-2.0, 0.0, 1.0]]))[:, 0].T
    assert (below.tolist(), zero.tolist(), above.tolist()) == ([0, 0, 1], [1, 1, 1], [1, 0.5, 0.5])
