# megatron/core/process_groups_config.py (Megatron-Core 0.19.2).
from torch.distributed import ProcessGroup

class ProcessGroupCollection:
    cp: ProcessGroup
    hcp: list[ProcessGroup]
    @classmethod
    def use_mpu_process_groups(cls, required_pgs: list[str] | None = ...) -> ProcessGroupCollection: ...
