"""The paper's claims put to finished studies, by fixed rules: holds, does not hold, cannot tell.

    python launch.py --config=configs/claims.py --workdir=runs/claims \
        --config.studies="('sft=runs/replication/sft', 'rlvr=runs/replication/rlvr')"

Reads results.json files only. Writes claims.json and claims.md. Cost: seconds.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    """Settings of experiments/claims.py."""
    return config_dict.ConfigDict({"experiment": "claims", "studies": ()})
