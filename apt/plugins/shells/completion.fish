# Completion of apt_model for fish.
# fish quotes what it inserts; nothing that is read here is evaluated.

function __apt_model_complete
    set -l program apt_model
    command -q apt_model; or set program @PROGRAM@
    set -l before (commandline -opc)
    set -l current (commandline -ct)
    set -l number (math (count $before) - 1)
    set -l lines (command $program __complete fish $number $before[2..] "$current" 2>/dev/null)
    or return
    set -l told (string split -m 1 \t -- $lines[1])
    if set -q lines[2]
        printf '%s\n' $lines[2..]
    end
    # What follows --option= as it was typed; fish itself completes paths in whole words only.
    set -l typed (string sub -s (math (string length -- "$told[2]") + 1) -- "$current")
    switch $told[1]
        case files
            for path in (__fish_complete_path "$typed")
                printf '%s%s\n' "$told[2]" "$path"
            end
        case directories
            for path in (__fish_complete_directories "$typed" '')
                printf '%s%s\n' "$told[2]" "$path"
            end
    end
end

complete -c apt_model -c apt-model -f -a '(__apt_model_complete)'
