# Completion of apt_model for bash.
# What it inserts comes quoted from apt_model; nothing that it reads is evaluated.

_apt_model() {
    local program=apt_model answer line first=1
    type -P apt_model >/dev/null || program=@PROGRAM@
    COMPREPLY=()
    answer=$(command "$program" __complete bash "$COMP_WORDBREAKS" \
        "${COMP_LINE:0:COMP_POINT}" "${COMP_LINE:COMP_POINT}" 2>/dev/null) || return 0
    while IFS= read -r line; do
        if [[ -z $first ]]; then
            COMPREPLY+=("$line")
            continue
        fi
        first=
        # Without compopt (bash 3.2) bash offers files where nothing else is known.
        case $line in
            none*) compopt +o default +o bashdefault 2>/dev/null ;;
            directories*) compopt +o default +o bashdefault -o dirnames 2>/dev/null ;;
        esac
        [[ $line == *nospace ]] && compopt -o nospace 2>/dev/null
    done <<<"$answer"
    return 0
}

complete -o bashdefault -o default -F _apt_model apt_model apt-model
