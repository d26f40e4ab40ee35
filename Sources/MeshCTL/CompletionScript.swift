// Completion scripts for bash, zsh and fish, made from the commands' descriptions. Names of
// services are asked from the agent when they are wanted.

import MeshCore

/// What `meshctl completion SHELL` prints.
enum CompletionScript {
    static func text(for shell: String) -> String {
        switch shell {
        case "bash": bash()
        case "zsh": zsh()
        default: fish()
        }
    }

    private static var globals: [ArgumentOption] { Catalog.program.options }

    /// The words that are not yet a whole command: `breaker`, `trace`.
    private static var groups: [String] {
        var groups: [String] = []
        for command in Catalog.commands where command.path.count > 1 && !groups.contains(command.path[0]) {
            groups.append(command.path[0])
        }
        return groups
    }

    /// The options that take a value, as they are written.
    private static var valued: [String] {
        var names: [String] = []
        for option in globals + Catalog.commands.flatMap(\.options) where option.value != nil {
            for name in spellings(option) where !names.contains(name) { names.append(name) }
        }
        return names
    }

    private static func spellings(_ option: ArgumentOption) -> [String] {
        (option.short.map { ["-\($0)"] } ?? []) + ["--\(option.name)"]
    }

    private static func spellings(_ options: [ArgumentOption]) -> String {
        options.flatMap { spellings($0) }.joined(separator: " ")
    }

    private static func words(after path: [String]) -> String {
        Catalog.words(after: path).joined(separator: " ")
    }

    private static func name(_ command: ArgumentCommand) -> String { command.path.joined(separator: " ") }

    /// What a word does that may follow a path: a command, or a group of them.
    private static func summary(of word: String, after path: [String]) -> String {
        let full = path + [word]
        return Catalog.program.command(full)?.summary
            ?? Catalog.words(after: full).joined(separator: ", ")
    }

    // MARK: bash

    private static func bash() -> String {
        let script = #"""
            # bash completion for meshctl. To use it, in ~/.bashrc: source <(meshctl completion bash)
            _meshctl() {
                local typed="${COMP_LINE:0:COMP_POINT}" cur word option="" path="" operands=0 found=""
                local -a words control=()
                cur="${typed##*[[:space:]]}"
                read -ra words <<<"${typed:0:${#typed}-${#cur}}"
                for word in "${words[@]:1}"; do
                    if [[ -n $option ]]; then
                        [[ $option == --control ]] && control=(--control "$word")
                        option=""
                        continue
                    fi
                    case "$word" in
                        \#(valued.joined(separator: "|"))) option="$word" ;;
                        -*) ;;
                        *)
                            case "$path" in
                                \#((["\"\""] + groups).joined(separator: "|"))) path="${path:+$path }$word" ;;
                                *) operands=$((operands + 1)) ;;
                            esac
                            ;;
                    esac
                done
                if [[ -z $option && $cur == --*=* ]]; then
                    option="${cur%%=*}"
                    cur="${cur#*=}"
                fi
                if [[ -n $option ]]; then
                    case "$path $option" in
            \#(bashValues().joined(separator: "\n"))
                    esac
                elif [[ $cur == -* ]]; then
                    found="\#(spellings(globals))"
                    case "$path" in
            \#(bashOptions().joined(separator: "\n"))
                    esac
                else
                    case "$path:$operands" in
            \#(bashOperands().joined(separator: "\n"))
                    esac
                fi
                COMPREPLY=()
                while IFS= read -r word; do
                    [[ -n $word && $word == "$cur"* ]] && COMPREPLY+=("$word")
                done <<<"${found// /$'\n'}"
                # bash replaces only what follows the last colon, and names such as [::1]:80 have some.
                if [[ $cur == *:* && $COMP_WORDBREAKS == *:* ]]; then
                    local before="${cur%"${cur##*:}"}"
                    COMPREPLY=("${COMPREPLY[@]#"$before"}")
                fi
            }
            complete -F _meshctl meshctl

            """#
        return script
    }

    private static func bashValues() -> [String] {
        var lines: [String] = []
        for command in Catalog.commands {
            for option in command.options where option.value != nil {
                guard let words = bashWords(option.values) else { continue }
                lines.append("            \"\(name(command)) --\(option.name)\") \(words) ;;")
            }
        }
        for option in globals where option.value != nil {
            guard let words = bashWords(option.values) else { continue }
            let patterns = spellings(option).map { "*\" \($0)\"" }.joined(separator: "|")
            lines.append("            \(patterns)) \(words) ;;")
        }
        return lines
    }

    private static func bashOptions() -> [String] {
        Catalog.commands.filter { !$0.options.isEmpty }.map {
            "            \"\(name($0))\") found+=\" \(spellings($0.options))\" ;;"
        }
    }

    private static func bashOperands() -> [String] {
        var lines = ["            \":0\") found=\"\(words(after: []))\" ;;"]
        lines += groups.map { "            \"\($0):0\") found=\"\(words(after: [$0]))\" ;;" }
        for command in Catalog.commands {
            guard let words = command.operands.first.flatMap({ bashWords($0.values) }) else { continue }
            lines.append("            \"\(name(command)):0\") \(words) ;;")
        }
        return lines
    }

    /// The shell words that give a value's candidates; nil where there are none.
    private static func bashWords(_ values: ArgumentValues) -> String? {
        switch values {
        case .any: nil
        case .file: "mapfile -t COMPREPLY < <(compgen -f -- \"$cur\"); return"
        case .choice(let choices): "found=\"\(choices.joined(separator: " "))\""
        case .command(let command): "found=\"$(\(command) \"${control[@]}\" 2>/dev/null)\""
        }
    }

    // MARK: zsh

    private static func zsh() -> String {
        let head = #"""
            #compdef meshctl
            # zsh completion for meshctl. To use it: meshctl completion zsh > DIRECTORY_IN_FPATH/_meshctl
            _meshctl_ask() {
                local -a control names typed=(${(z)BUFFER})
                local at=${typed[(i)--control]}
                (( at < $#typed )) && control=(--control ${(Q)typed[at+1]})
                names=(${(f)"$("$@" $control 2>/dev/null)"})
                compadd -a names
            }

            """#
        let tail = #"""
            if [[ $funcstack[1] == _meshctl ]]; then
                _meshctl "$@"
            else
                compdef _meshctl meshctl
            fi

            """#
        return head + ([[]] + groups.map { [$0] }).map(zshFunction).joined() + tail
    }

    /// The function that completes what follows a path.
    private static func zshFunction(_ path: [String]) -> String {
        let children = Catalog.words(after: path)
        let described = children.map { zshQuoted("\($0):\(summary(of: $0, after: path))") }
        let globals = path.isEmpty ? Self.globals.flatMap { zshOption($0) }.map { "        \($0) \\\n" } : []
        return #"""
            _\#((["meshctl"] + path).joined(separator: "_"))() {
                local curcontext="$curcontext" state line
                typeset -A opt_args
                _arguments -C \
            \#(globals.joined())        '1: :->command' \
                    '*:: :->rest'
                case $state in
                    command)
                        local -a commands=(
            \#(described.map { "                " + $0 }.joined(separator: "\n"))
                        )
                        _describe command commands
                        ;;
                    rest)
                        case $line[1] in
            \#(children.map { zshCase($0, after: path) }.joined(separator: "\n"))
                        esac
                        ;;
                esac
            }

            """#
    }

    private static func zshCase(_ word: String, after path: [String]) -> String {
        guard let command = Catalog.program.command(path + [word]) else {
            return "                \(word)) _meshctl_\(word) ;;"
        }
        let operands = command.operands.map { operand in
            zshQuoted("\(operand.count == .any ? "*" : "1"):\(operand.name):\(zshAction(operand.values))")
        }
        let parts = (command.options + globals).flatMap { zshOption($0) } + operands
        return "                \(word))\n                    _arguments \\\n"
            + parts.map { "                        \($0)" }.joined(separator: " \\\n")
            + "\n                    ;;"
    }

    private static func zshOption(_ option: ArgumentOption) -> [String] {
        let summary = option.summary.map { "[]:\\".contains($0) ? "\\\($0)" : "\($0)" }.joined()
        let value = option.value.map { ":\($0):\(zshAction(option.values))" } ?? ""
        return spellings(option).map { zshQuoted("\($0)[\(summary)]\(value)") }
    }

    private static func zshAction(_ values: ArgumentValues) -> String {
        switch values {
        case .any: " "
        case .file: "_files"
        case .choice(let choices): "(\(choices.joined(separator: " ")))"
        // The blank in front keeps _arguments from adding arguments of its own.
        case .command(let command): " _meshctl_ask \(command)"
        }
    }

    private static func zshQuoted(_ text: String) -> String {
        "'" + text.map { $0 == "'" ? "'\\''" : "\($0)" }.joined() + "'"
    }

    // MARK: fish

    private static func fish() -> String {
        let head = #"""
            # fish completion for meshctl. To use it:
            # meshctl completion fish > ~/.config/fish/completions/meshctl.fish
            function __meshctl_words
                set -l skip 0
                for word in (commandline -opc)[2..-1]
                    if test $skip = 1
                        set skip 0
                        continue
                    end
                    switch $word
                        case \#(valued.joined(separator: " "))
                            set skip 1
                        case '-*'
                        case '*'
                            echo $word
                    end
                end
            end
            function __meshctl_at
                set -l words (__meshctl_words)
                test "$words" = "$argv"
            end
            function __meshctl_in
                set -l words (__meshctl_words)
                set -l length (count $argv)
                test (count $words) -ge $length; and test "$words[1..$length]" = "$argv"
            end
            function __meshctl_ask
                set -l words (commandline -opc)
                set -l control
                if set -l at (contains -i -- --control $words); and test $at -lt (count $words)
                    set control --control $words[(math $at + 1)]
                end
                $argv $control 2>/dev/null
            end
            complete -c meshctl -f

            """#
        var lines = globals.map { fishOption($0, condition: nil) }
        for path in [[]] + groups.map({ [$0] }) {
            let condition = (["__meshctl_at"] + path).joined(separator: " ")
            lines += Catalog.words(after: path).map { word in
                "complete -c meshctl -n '\(condition)' -a \(word) -d \(fishQuoted(summary(of: word, after: path)))"
            }
        }
        for command in Catalog.commands {
            lines += command.options.map { fishOption($0, condition: "__meshctl_in \(name(command))") }
            if let words = command.operands.first.flatMap({ fishWords($0.values) }) {
                lines.append("complete -c meshctl -n '__meshctl_at \(name(command))' -a \(words)")
            }
        }
        return head + lines.joined(separator: "\n") + "\n"
    }

    private static func fishOption(_ option: ArgumentOption, condition: String?) -> String {
        var line = "complete -c meshctl"
        if let condition { line += " -n '\(condition)'" }
        if let short = option.short { line += " -s \(short)" }
        line += " -l \(option.name)"
        if option.value != nil {
            line += option.values == .file ? " -r -F" : " -x"
            if let words = fishWords(option.values) { line += " -a \(words)" }
        }
        return line + " -d \(fishQuoted(option.summary))"
    }

    private static func fishWords(_ values: ArgumentValues) -> String? {
        switch values {
        case .any, .file: nil
        case .choice(let choices): "'\(choices.joined(separator: " "))'"
        case .command(let command): "'(__meshctl_ask \(command))'"
        }
    }

    private static func fishQuoted(_ text: String) -> String {
        "'" + text.map { "'\\".contains($0) ? "\\\($0)" : "\($0)" }.joined() + "'"
    }
}
