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
    set -l told (string split \t -- $lines[1])
    if set -q lines[2]
        printf '%s\n' $lines[2..]
    end
    # fish's own paths, of the word as it was typed: of a command that has no completion.
    switch $told[1]
        case files
            complete -C"'' $current"
        case directories
            complete -C"'' $current" | string match -r '.*/$'
    end
end

complete -c apt_model -c apt-model -f -a '(__apt_model_complete)'
