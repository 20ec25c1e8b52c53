"""Training: one file per stage, and what the stages share.

``turncoder.train`` is this package and the function that runs a config of any stage: importing a stage binds the
name to the package, so the package itself can be called.
"""

import sys
import types
from pathlib import Path
from typing import Any


class _Train(types.ModuleType):
    def __call__(self, config: Any) -> Path:
        """Run the stage that ``config`` describes, or resume it.

        Where ``push_to_hub`` is on, the run is published when it is done, and what would keep it from that is said
        before it starts.

        Parameters
        ----------
        config
            A `turncoder.MntpConfig`, `turncoder.SimcseConfig`, `turncoder.SupervisedConfig`,
            `turncoder.WordsConfig`, `turncoder.PretrainConfig`, `turncoder.GlueConfig` or `turncoder.TurnConfig`.

        Returns
        -------
        Path
            The run folder.

        Raises
        ------
        UserError
            The input is wrong: one line that names the key, the value and the remedy.
        """
        if getattr(config, "training", {}).get("push_to_hub"):
            from turncoder.publish.pushing import push

            return push(config, _run)
        return _run(config)


def _run(config: Any) -> Path:
    """Run the stage that a config is of."""
    from turncoder.config.glue import GlueConfig
    from turncoder.config.pretraining import PretrainConfig
    from turncoder.config.stages import MntpConfig, SimcseConfig, SupervisedConfig, TurnConfig
    from turncoder.config.words import WordsConfig

    if isinstance(config, MntpConfig):
        import turncoder.train.mntp as mntp

        return mntp.train(config)
    if isinstance(config, SimcseConfig | SupervisedConfig):
        import turncoder.train.contrast as contrast

        return contrast.train(config)
    if isinstance(config, WordsConfig):
        import turncoder.train.words as words

        return words.train(config)
    if isinstance(config, PretrainConfig):
        import turncoder.train.pretrain as pretrain

        return pretrain.train(config)
    if isinstance(config, GlueConfig):
        import turncoder.evaluate.glue as glue

        return glue.evaluate(config)
    kind = type(config).__name__
    if isinstance(config, TurnConfig):
        from turncoder.turn.ladder import turn

        return turn(config)
    raise TypeError(f"train() takes a config of a stage, such as MntpConfig, not a {kind}")


sys.modules[__name__].__class__ = _Train
