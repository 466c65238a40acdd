#!/bin/sh
# Python with real clients of OpenAI's API: a script of this folder, arguments after FOLDER and WHAT.
# usage: python.sh FOLDER WHAT SCRIPT|PROGRAM [ARGUMENT…]   WHAT is a pip requirement; FOLDER keeps an environment for each
# Exits with 3 when it can be had neither from this machine nor from PyPI.
set -eu
folder=$1
what=$2
shift 2
venv=$folder/openai-$(printf %s "$what" | tr -c 'a-zA-Z0-9.' '-')
if [ ! -e "$venv/whole" ]; then
    mkdir -p "$folder"
    (
        flock 9
        [ -e "$venv/whole" ] || {
            # shellcheck disable=SC2086 # several requirements are several words
            python3 -m venv "$venv" && "$venv/bin/python" -m pip install --quiet --disable-pip-version-check $what &&
                touch "$venv/whole"
        }
    ) 9>"$venv.lock" >&2 || exit 3
fi
case $1 in
*.py) exec "$venv/bin/python" "$@" ;;
*)
    program=$1
    shift
    exec "$venv/bin/$program" "$@"
    ;;
esac
