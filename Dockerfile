# docker build -t ssl_selmix .                               on the CPU
# docker build -t ssl_selmix --build-arg TORCH=cu130 .       CUDA, which torch's wheels bring; run with --gpus all
# docker run --rm -v "$PWD/runs:/work/runs" ssl_selmix train --algo fixmatch --then selmix

# With a C++ compiler, which compile=true needs on the CPU.
FROM python:3.12 AS torch
ARG TORCH=cpu
RUN pip install --no-cache-dir --index-url https://download.pytorch.org/whl/${TORCH} torch torchvision

FROM torch AS release
COPY pyproject.toml setup.py README.md LICENSE /source/
COPY ssl_selmix /source/ssl_selmix
RUN pip install --no-cache-dir /source
WORKDIR /work
ENTRYPOINT ["ssl-selmix"]
