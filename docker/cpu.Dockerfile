# docker build -f docker/cpu.Dockerfile -t rmat .
# docker run --rm -v "$PWD:/work" rmat predict --model runs/pic50 --input library.csv --output predicted.csv
FROM python:3.12-slim

# what RDKit draws with, in any version
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libexpat1 libxext6 libxrender1 \
    && rm -rf /var/lib/apt/lists/*

COPY constraints.txt pyproject.toml setup.py README.md LICENSE /source/
COPY rmat_hf /source/rmat_hf
RUN pip install --no-cache-dir --constraint /source/constraints.txt \
        --extra-index-url https://download.pytorch.org/whl/cpu '/source[excel,viz]' \
    && rm -r /source \
    && useradd --create-home --uid 1000 chemist

USER 1000
WORKDIR /work
ENTRYPOINT ["rmat"]
