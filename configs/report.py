"""The report of one finished study anew, or several studies on one page; nothing is trained.

    python launch.py --config=configs/report.py --workdir=runs/quickstart
    python launch.py --config=configs/report.py --workdir=runs/table \
        --config.studies="('sft=runs/replication/sft', 'rlvr=runs/replication/rlvr')"

studies: workdirs or results.json files, NAME=PATH to name one. None: the study in --workdir. Several: --workdir is the
folder of the comparison, which gets report.html, results.json and table.txt. Cost: seconds.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    """Settings of experiments/report.py."""
    return config_dict.ConfigDict({"experiment": "report", "studies": ()})
