#!/usr/bin/env bash
# Written by iisft env-check --fix-plan. Read it first; nothing has been changed yet.
set -euo pipefail

PYTHON=/opt/conda/envs/iis_finetune/bin/python

# 1. By hand (no command can do it)

# R42 Intel(R) Xeon(R) CPU E5-2696 v2 @ 2.50GHz has no AVX2: optimizer offload (ZeRO) is very slow, and some wheels die with 'Illegal instruction'
# -> no offload to the CPU; take lts or compat builds (polars-lts-cpu)

# 2. As root, and a reboot after it

# R08 the IOMMU translates the GPUs' DMA: several GPUs can hang at their first all-reduce, at 0 % load and without a message
if ! grep -qw 'iommu=pt' /proc/cmdline; then
  grep -q 'iommu=pt' /etc/default/grub || sudo sed -i.iisft-backup 's/^GRUB_CMDLINE_LINUX_DEFAULT="\(.*\)"/GRUB_CMDLINE_LINUX_DEFAULT="\1 iommu=pt"/' /etc/default/grub
  sudo update-grub
  echo 'Reboot now (sudo reboot), then run this script again.'
  exit
fi

# 3. A Python for the training interpreter

# R31 Python 3.10.12: LLaMA-Factory 0.9.5 needs 3.11 or newer
conda create -n iisft -c conda-forge --override-channels python=3.11 -y
PYTHON="$(conda run -n iisft python -c 'import sys; print(sys.executable)')"

# 4. Packages of the training interpreter

# R13 torch 2.4.1+rocm6.1 is older than 2.6: transformers 4.57.1 will not load a checkpoint's optimizer, so a run that stops can't be resumed
"$PYTHON" -m pip install torch==2.7.1+rocm6.3 torchvision==0.22.1+rocm6.3 torchaudio==2.7.1+rocm6.3 --index-url https://download.pytorch.org/whl/rocm6.3
"$PYTHON" -m pip install 'iisft[train]' -c constraints.txt

# R14 torch is built for ROCm 6.1, this machine's ROCm is 6.4: AMD tests driver and user space at most two releases apart
# -> fixed by a command above

# llamafactory-version LLaMA-Factory 0.9.4 is installed; iisft is tested with 0.9.5
# -> fixed by a command above

# 5. Variables: a script can't set them for you; type them, and change ~/.bashrc or the preset's env

# R05 HSA_OVERRIDE_GFX_VERSION=9.0.6 is not needed on a real gfx906, and does harm as soon as another AMD GPU is visible
echo 'unset HSA_OVERRIDE_GFX_VERSION'

# R30 DISABLE_VERSION_CHECK is on: LLaMA-Factory no longer says when a library does not fit
echo 'unset DISABLE_VERSION_CHECK'
