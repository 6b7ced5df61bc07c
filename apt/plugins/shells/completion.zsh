#compdef apt_model apt-model
# Completion of apt_model for zsh.
# compadd quotes what it inserts; nothing that is read here is evaluated.

_apt_model() {
    local program=apt_model paths prefix line
    local -a lines before after values shown
    (( $+commands[apt_model] )) || program=@PROGRAM@
    (( CURRENT > 2 )) && before=("${(@Q)words[2,CURRENT-1]}")
    (( CURRENT < $#words )) && after=("${(@Q)words[CURRENT+1,-1]}")
    lines=("${(@f)$(command "$program" __complete zsh $#before "$before[@]" "${(Q)PREFIX}" "$after[@]" 2>/dev/null)}")
    paths=${lines[1]%%$'\t'*}
    prefix=${lines[1]#*$'\t'}
    [[ -n $prefix ]] && compset -P 1 '*='
    for line in "${(@)lines[2,-1]}"; do
        [[ -n $line ]] || continue
        values+=("${line%%$'\t'*}")
        shown+=("${line/$'\t'/  -- }")
    done
    local found=1
    (( $#values )) && compadd -l -d shown -a values && found=0
    case $paths in
        files) _files && found=0 ;;
        directories) _files -/ && found=0 ;;
    esac
    return found
}

if [[ $funcstack[1] == _apt_model ]]; then
    _apt_model "$@"
else
    compdef _apt_model apt_model apt-model
fi
