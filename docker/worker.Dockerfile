# A worker: Celery, fastai, torch. Runs on a GPU where there is one, on the processor otherwise.
FROM python:3.12-slim
RUN useradd --uid 10001 --create-home darkroom && install -d -o darkroom /data /cache
WORKDIR /app
COPY pyproject.toml constraints.txt README.md ./
COPY shared shared
COPY worker worker
COPY cli cli
RUN pip install --no-cache-dir -c constraints.txt -e '.[worker,s3]'
USER 10001
ENV DARKROOM_STORAGE=/data DARKROOM_CACHE=/cache TORCH_HOME=/cache/torch PYTHONUNBUFFERED=1
HEALTHCHECK --interval=15s --timeout=10s --start-period=30s CMD ["python", "-m", "worker.health"]
CMD ["darkroom", "worker"]
