# The web: pages and API. No torch in here.
FROM python:3.12-slim
RUN useradd --uid 10001 --create-home darkroom && install -d -o darkroom /data /cache
WORKDIR /app
COPY pyproject.toml constraints.txt README.md ./
COPY shared shared
COPY web web
COPY cli cli
RUN pip install --no-cache-dir -c constraints.txt -e '.[s3]' && ! python -c "import torch" 2>/dev/null
USER 10001
ENV DARKROOM_STORAGE=/data DARKROOM_CACHE=/cache DARKROOM_HOST=0.0.0.0 PYTHONUNBUFFERED=1
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
CMD ["darkroom", "web"]
