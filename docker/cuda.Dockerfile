# docker build -f docker/cuda.Dockerfile -t rmat-cuda .
# docker run --rm --gpus all -v "$PWD:/work" rmat-cuda finetune --dataset measurements.csv --label-columns pIC50 --output-dir run
# PyTorch's wheel for Linux brings CUDA; the host brings the driver.
FROM python:3.12-slim

# what RDKit draws with, in any version
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libexpat1 libxext6 libxrender1 \
    && rm -rf /var/lib/apt/lists/*

COPY constraints.txt pyproject.toml setup.py README.md LICENSE /source/
COPY rmat_hf /source/rmat_hf
RUN pip install --no-cache-dir --constraint /source/constraints.txt '/source[excel,peft,viz]' \
    && rm -r /source \
    && useradd --create-home --uid 1000 chemist

USER 1000
WORKDIR /work
ENTRYPOINT ["rmat"]
