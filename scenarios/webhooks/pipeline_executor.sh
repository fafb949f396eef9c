#!/bin/sh
# The program that does the jobs of scenarios 11 and 12: the agent of a stage.
#
# pipeline_executor.sh FOLDER TASK STAGE [COMMAND ...]. It does the command, if any (a push), notes the job as a line of
# the ledger, and leaves the file TASK-STAGE, which the gate of that stage looks for. A shell starts in a millisecond,
# Python in ten, and each pipeline has seven jobs.
set -eu
folder=$1 task=$2 stage=$3
shift 3
"$@"
echo "$task $stage" >>"$folder/ledger"
: >"$folder/$task-$stage"
