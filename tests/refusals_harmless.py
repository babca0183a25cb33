# SPDX-License-Identifier: MIT
"""Public names that refuse nothing, and why."""

from __future__ import annotations

HARMLESS: dict[str, str] = {
    "fr.backend_info": "it takes nothing, and says what there is",
    "fr.Epochs.__post_init__": "__init__ calls it, and refuses",
    "fr.Epochs.__repr__": "it describes values",
    "fr.Epochs.__eq__": "it compares values",
    "fr.Field.__eq__": "it compares values",
    "fr.Field.__repr__": "it describes values",
    "fr.get_num_threads": "it takes nothing",
    "fr.Loader.__init__": "ReplayBuffer.loader calls it, and refuses",
    "fr.Loader.__iter__": "it returns the loader",
    "fr.Loader.__enter__": "it returns the loader",
    "fr.Loader.__exit__": "it closes",
    "fr.Loader.close": "it may be called at any time, any number of times",
    "fr.Loader.__repr__": "it describes",
    "fr.Minibatch.__init__": "the library calls it: what makes minibatches refuses",
    "fr.Minibatch.__bool__": "every minibatch is empty or not",
    "fr.Minibatch.__iter__": "it hands out what there is",
    "fr.Minibatch.__dir__": "it names what there is",
    "fr.Minibatch.__repr__": "it describes",
    "fr.Minibatch.keys": "it names what there is",
    "fr.Minibatch.values": "it hands out what there is",
    "fr.Minibatch.items": "it hands out what there is",
    "fr.Mixture.__repr__": "it describes",
    "fr.Mixture.__reduce__": "it copies what is stored, beside writers too",
    "fr.Priorities.__post_init__": "__init__ calls it, and refuses",
    "fr.Priorities.lap": "it takes nothing",
    **{
        f"fr.{rule}.{name}": reason
        for rule in ("NStep", "Sequence", "Window")
        for name, reason in {
            "__post_init__": "__init__ calls it, and refuses",
            "__repr__": "it describes values",
            "__eq__": "it compares values",
        }.items()
    },
    "fr.Priorities.__repr__": "it describes values",
    "fr.Priorities.__eq__": "it compares values",
    "fr.Prioritized.__init__": "it takes nothing",
    "fr.Prioritized.__repr__": "it describes values",
    "fr.Prioritized.__eq__": "it compares values",
    "fr.ReplayBuffer.__len__": "it counts",
    "fr.ReplayBuffer.__repr__": "it describes",
    "fr.ReplayBuffer.__reduce__": "it copies what is stored, beside writers too",
    "fr.ReplayBuffer.clear": "there is always something or nothing to forget",
    "fr.ReplayBuffer.stats": "it counts",
    "fr.SaveHandle.__init__": "save_async calls it, and refuses",
    "fr.Sampler.stats": "it counts",
    "fr.Sampler.__repr__": "it describes",
    "fr.Sampler.__reduce__": "it copies what is stored, beside writers too",
    "fr.Schema.__iter__": "it names what there is",
    "fr.Schema.__len__": "it counts",
    "fr.Schema.__eq__": "anything is equal or not",
    "fr.Schema.__repr__": "it describes",
    "fr.Schema.__reduce__": "it hands out what there is",
    "fr.SoftUpdate.__getstate__": "it hands out what there is",
    "fr.Uniform.__post_init__": "__init__ calls it, and refuses",
    "fr.Uniform.__repr__": "it describes values",
    "fr.Uniform.__eq__": "it compares values",
    "sb3.HerReplayBuffer.truncate_last_trajectory": "it ends what there is, and warns",
    "sb3.accelerate": "it takes nothing, and may be called any number of times",
    "sb3.Acceleration.__init__": "accelerate calls it",
    "sb3.Acceleration.undo": "it may be called any number of times",
    "sb3.Acceleration.__enter__": "it returns the acceleration",
    "sb3.Acceleration.__exit__": "it undoes",
    "sb3.Acceleration.__repr__": "it describes",
    "sb3.Columns.__reduce__": "it hands out what there is",
    "sb3.StepColumn.__init__": "the buffer calls it",
    "sb3.StepColumn.__len__": "it counts",
    "sb3.StepColumn.__repr__": "it describes",
}

_OF_ADAPTERS = {
    "size": "it counts",
    "reset": "there is always something or nothing to forget",
    "to_sb3": "it copies what there is",
    "swap_and_flatten": "Stable-Baselines3's, a function of one array",
    "__getstate__": "it hands out what there is",
}
for _name in ("ReplayBuffer", "DictReplayBuffer", "NStepReplayBuffer", "HerReplayBuffer", "PrioritizedReplayBuffer"):
    HARMLESS |= {f"sb3.{_name}.{method}": reason for method, reason in _OF_ADAPTERS.items()}
HARMLESS |= {f"cleanrl.ReplayBuffer.{method}": _OF_ADAPTERS[method] for method in ("size", "reset", "__getstate__")}
