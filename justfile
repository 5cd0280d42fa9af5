# What a developer does often; CI runs `check`.

# Everything that CI checks.
check:
    .ci/run

# The tests alone.
test:
    cargo test --release

# The golden files of tests/families.rs, from transformers (scripts/requirements.txt).
golden:
    python3 scripts/golden.py

# Perplexity and speed against transformers on the fixtures, in one run.
compare text="tests/fixtures/pycode.test.txt" model="tests/fixtures/pycode-llama":
    cargo build --release
    python3 scripts/compare_eval.py {{model}} --text {{text}} --bench-bantam target/release/bantam
