#!/bin/sh
echo "pnpm in $NODE_ENV by $0"
