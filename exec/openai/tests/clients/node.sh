#!/bin/sh
# OpenAI's client for Node: runs a script of this folder with it, arguments after FOLDER.
# usage: node.sh FOLDER SCRIPT [ARGUMENT…]    the folder keeps the package between runs
# Exits with 3 when it can be had neither from this machine nor from npm.
set -eu
folder=$1/openai-node
script=$2
shift 2
version=7.59.0
command -v node >/dev/null && command -v npm >/dev/null || exit 3
if [ ! -e "$folder/whole-$version" ]; then
    mkdir -p "$folder"
    (
        flock 9
        [ -e "$folder/whole-$version" ] || {
            cd "$folder" && npm init --yes >/dev/null && npm install --silent --no-audit --no-fund "openai@$version" &&
                touch "whole-$version"
        }
    ) 9>"$folder/lock" >&2 || exit 3
fi
cp "$script" "$folder/"
exec node "$folder/$(basename "$script")" "$@"
