"""What users may set: one frozen dataclass per stage, read from TOML and JSON files and from flags that win."""
