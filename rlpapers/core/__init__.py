"What every paper builds on; each name is imported from its module when first used."

from typing import TYPE_CHECKING

from .lazy import lazy_package

if TYPE_CHECKING:
    from .checkpoint import *
    from .claims import *
    from .findings import *
    from .folder import *
    from .parallel import *
    from .params import *
    from .paths import *
    from .plots import *
    from .run import *
    from .seeding import *
    from .stats import *
    from .timing import *
    from .unit import *

_MODULES = {
    "paths": "UserError MissingExtra RunError Stored root home is_checkout settings_file "
    "papers paper_name notebook require stored did_you_mean",
    "params": "ParamError Params P Settings Resolved describe read_yaml parse_pairs "
    "size_of default_preset settings preset_names load_preset experiments identify "
    "merge resolve",
    "checkpoint": "CheckpointError save_state load_state has_state delete_state "
    "write_atomic disk_error plain canonical_json to_csv to_npz",
    "seeding": "seeds derive torch_generator numpy_generator pick_device mix64 uniform",
    "parallel": "threads thread_env sendable job_count usable_jobs pmap",
    "unit": "Unit",
    "folder": "provenance params_text differing new_run_dir store stale",
    "run": "Run",
    "stats": "Interval iqm bootstrap wilson newcombe fisher power_two_proportions "
    "paired_permutation sign_test holm trimmed_mean kaplan_meier logrank",
    "plots": "style COLORS MARKERS curve interval_dots heat_map compact",
    "timing": "median_seconds row absolute attempt",
    "findings": "ClaimError Claim Finding",
    "claims": "load_claims recompute update check table render status_table update_index",
}

__getattr__, __dir__, __all__ = lazy_package(__name__, _MODULES)
