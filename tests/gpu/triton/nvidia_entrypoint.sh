#!/bin/sh
echo "== Triton Inference Server =="
exec "$@"
