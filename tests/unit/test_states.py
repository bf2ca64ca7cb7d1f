import numpy as np
import pytest
import torch

from derma.states import deserialise, load_state, save_state, serialise


def test_states_survive_their_file(tmp_path):
    state = {"a": [1, 2.5, None, "text"], 3: (torch.eye(2), np.arange(3)), "nested": {"b": True}}
    save_state(state, tmp_path / "state.safetensors")
    back = load_state(tmp_path / "state.safetensors")
    assert back["a"] == state["a"] and torch.equal(back[3][0], state[3][0]) and (back[3][1] == state[3][1]).all()
    assert deserialise(serialise({"x": ()}, {}), {}) == {"x": ()}
    with pytest.raises(TypeError, match="cannot hold a set"):
        serialise({"x": {1}}, {})
    with pytest.raises(ValueError, match=r"missing.safetensors: missing or damaged"):
        load_state(tmp_path / "missing.safetensors")
