# refine-pl with its recipes, for a machine with or without a GPU.
#
#   docker build -t refine-pl .
#   docker run --rm -it -v "$PWD/runs:/workspace/runs" refine-pl fit --config tiny_mid
#   docker run --rm -it --gpus all -v "$PWD:/workspace" refine-pl doctor
#
# Without a GPU, --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu saves some gigabytes.
FROM python:3.12-slim

# Triton and torch.compile build their launchers with a C++ compiler.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

ARG TORCH_INDEX=https://pypi.org/simple
RUN pip install --no-cache-dir --index-url "${TORCH_INDEX}" "torch>=2.7"

WORKDIR /opt/refine-pl
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
COPY kernels ./kernels
COPY configs ./configs
RUN pip install --no-cache-dir .

# Runs, caches and rewards of your own lie in the folder that the command starts from.
WORKDIR /workspace
ENV HF_HOME=/workspace/.huggingface
ENTRYPOINT ["refine-pl"]
CMD ["--help"]
