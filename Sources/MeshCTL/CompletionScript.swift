// Completion scripts for bash, zsh and fish, made from the commands' descriptions. Names of
// services are asked from the agent when they are wanted.

/// What `meshctl completion SHELL` prints.
enum CompletionScript {
    static func lines(for shell: String) -> [String] {
        switch shell {
        case "bash": bash()
        case "zsh": zsh()
        default: fish()
        }
    }

    /// The options that take a value, as patterns on the command line.
    private static var valued: [String] {
        var names: [String] = []
        for option in Catalog.globals + Catalog.visible.flatMap(\.options) where option.value != nil {
            let spellings = (option.short.map { ["-\($0)"] } ?? []) + ["--\(option.name)"]
            for spelling in spellings where !names.contains(spelling) { names.append(spelling) }
        }
        return names
    }

    /// The words that are not yet a whole command.
    private static var groups: [Command] { Catalog.visible.filter { $0.action == nil } }

    private static func names(below path: [String]) -> String {
        Catalog.children(of: path).map { $0.path[path.count] }.joined(separator: " ")
    }

    private static func spellings(_ options: [Option]) -> String {
        options.flatMap { option in (option.short.map { ["-\($0)"] } ?? []) + ["--\(option.name)"] }
            .joined(separator: " ")
    }

    // MARK: bash

    private static func bash() -> [String] {
        var lines = [
            "# bash completion for meshctl. To use it, in ~/.bashrc: source <(meshctl completion bash)",
            "_meshctl() {",
            "    local typed=\"${COMP_LINE:0:COMP_POINT}\" cur word option=\"\" path=\"\" operands=0 found=\"\"",
            "    local -a words control=()",
            "    cur=\"${typed##*[[:space:]]}\"",
            "    read -ra words <<<\"${typed:0:${#typed}-${#cur}}\"",
            "    for word in \"${words[@]:1}\"; do",
            "        if [[ -n $option ]]; then",
            "            [[ $option == --control ]] && control=(--control \"$word\")",
            "            option=\"\"",
            "            continue",
            "        fi",
            "        case \"$word\" in",
            "            \(valued.joined(separator: "|"))) option=\"$word\" ;;",
            "            -*) ;;",
            "            *)",
            "                case \"$path\" in",
            "                    \((["\"\""] + groups.map { "\"\($0.name)\"" }).joined(separator: "|")))"
                + " path=\"${path:+$path }$word\" ;;",
            "                    *) operands=$((operands + 1)) ;;",
            "                esac",
            "                ;;",
            "        esac",
            "    done",
            "    if [[ -z $option && $cur == --*=* ]]; then",
            "        option=\"${cur%%=*}\"",
            "        cur=\"${cur#*=}\"",
            "    fi",
            "    if [[ -n $option ]]; then",
            "        case \"$path $option\" in",
        ]
        for command in Catalog.visible {
            for option in command.options where option.value != nil {
                guard let words = bashWords(option.completion) else { continue }
                lines.append("            \"\(command.name) --\(option.name)\") \(words) ;;")
            }
        }
        for option in Catalog.globals where option.value != nil {
            guard let words = bashWords(option.completion) else { continue }
            let short = option.short.map { "|*\" -\($0)\"" } ?? ""
            lines.append("            *\" --\(option.name)\"\(short)) \(words) ;;")
        }
        lines += [
            "        esac",
            "    elif [[ $cur == -* ]]; then",
            "        found=\"\(spellings(Catalog.globals))\"",
            "        case \"$path\" in",
        ]
        for command in Catalog.visible where !command.options.isEmpty {
            lines.append("            \"\(command.name)\") found+=\" \(spellings(command.options))\" ;;")
        }
        lines += ["        esac", "    else", "        case \"$path:$operands\" in"]
        lines.append("            \":0\") found=\"\(names(below: []))\" ;;")
        for command in Catalog.visible {
            if command.action == nil {
                lines.append("            \"\(command.name):0\") found=\"\(names(below: command.path))\" ;;")
            } else if let operand = command.operands.first, let words = bashWords(operand.completion) {
                lines.append("            \"\(command.name):0\") \(words) ;;")
            }
        }
        lines += [
            "        esac",
            "    fi",
            "    local IFS=$'\\n'",
            "    found=\"${found// /$IFS}\"",
            "    COMPREPLY=()",
            "    for word in $found; do",
            "        [[ $word == \"$cur\"* ]] && COMPREPLY+=(\"$word\")",
            "    done",
            "    # bash replaces what follows the last colon only, and names such as [::1]:80 have some.",
            "    if [[ $cur == *:* && $COMP_WORDBREAKS == *:* ]]; then",
            "        COMPREPLY=(\"${COMPREPLY[@]#\"${cur%\"${cur##*:}\"}\"}\")",
            "    fi",
            "}",
            "complete -F _meshctl meshctl",
        ]
        return lines
    }

    /// The shell words that give a value's candidates; nil where there are none.
    private static func bashWords(_ completion: Completion) -> String? {
        switch completion {
        case .nothing: nil
        case .files: "mapfile -t COMPREPLY < <(compgen -f -- \"$cur\"); return"
        case .choices(let choices): "found=\"\(choices.joined(separator: " "))\""
        case .services: "found=\"$(meshctl \"${control[@]}\" __complete services 2>/dev/null)\""
        case .breakers: "found=\"$(meshctl \"${control[@]}\" __complete breakers 2>/dev/null)\""
        case .commands: "found=\"\(names(below: []))\""
        }
    }

    // MARK: zsh

    private static func zsh() -> [String] {
        var lines = [
            "#compdef meshctl",
            "# zsh completion for meshctl. To use it: meshctl completion zsh > a directory in $fpath/_meshctl",
            "_meshctl_names() {",
            "    local -a names",
            "    names=(${(f)\"$(meshctl ${opt_args[--control]:+--control} ${opt_args[--control]} "
                + "__complete $1 2>/dev/null)\"})",
            "    compadd -a names",
            "}",
        ]
        for group in [[]] + groups.map(\.path) {
            let function = (["_meshctl"] + group).joined(separator: "_")
            lines += [
                "\(function)() {", "    local curcontext=\"$curcontext\" state line", "    typeset -A opt_args",
                "    _arguments -C \\",
            ]
            if group.isEmpty { lines += Catalog.globals.flatMap { zshOption($0) }.map { "        \($0) \\" } }
            lines += ["        '1: :->command' \\", "        '*:: :->rest'", "    case $state in", "        command)"]
            lines.append("            local -a commands=(")
            for child in Catalog.children(of: group) {
                lines.append("                \(zshQuoted("\(child.path[group.count]):\(child.summary)"))")
            }
            lines += ["            )", "            _describe command commands", "            ;;", "        rest)"]
            lines.append("            case $line[1] in")
            for child in Catalog.children(of: group) {
                let word = child.path[group.count]
                if child.action == nil {
                    lines.append("                \(word)) \((["_meshctl"] + child.path).joined(separator: "_")) ;;")
                    continue
                }
                lines += ["                \(word))", "                    _arguments \\"]
                let parts =
                    (child.options + Catalog.globals).flatMap { zshOption($0) }
                    + child.operands.map { operand in
                        let place = operand.count == .any ? "*" : "1"
                        return zshQuoted("\(place):\(operand.name):\(zshAction(operand.completion))")
                    }
                lines += parts.dropLast().map { "                        \($0) \\" }
                lines += parts.suffix(1).map { "                        \($0)" }
                lines.append("                    ;;")
            }
            lines += ["            esac", "            ;;", "    esac", "}"]
        }
        return lines + [
            "if [[ $funcstack[1] == _meshctl ]]; then", "    _meshctl \"$@\"", "else",
            "    compdef _meshctl meshctl", "fi",
        ]
    }

    private static func zshOption(_ option: Option) -> [String] {
        let summary = option.summary.map { "[]:\\".contains($0) ? "\\\($0)" : "\($0)" }.joined()
        let value = option.value.map { ":\($0):\(zshAction(option.completion))" } ?? ""
        let spellings = (option.short.map { ["-\($0)"] } ?? []) + ["--\(option.name)"]
        return spellings.map { zshQuoted("\($0)[\(summary)]\(value)") }
    }

    private static func zshAction(_ completion: Completion) -> String {
        switch completion {
        case .nothing: " "
        case .files: "_files"
        case .choices(let choices): "(\(choices.joined(separator: " ")))"
        case .services: "_meshctl_names services"
        case .breakers: "_meshctl_names breakers"
        case .commands: "(\(names(below: [])))"
        }
    }

    private static func zshQuoted(_ text: String) -> String {
        "'" + text.map { $0 == "'" ? "'\\''" : "\($0)" }.joined() + "'"
    }

    // MARK: fish

    private static func fish() -> [String] {
        var lines = [
            "# fish completion for meshctl. To use it:",
            "# meshctl completion fish > ~/.config/fish/completions/meshctl.fish",
            "function __meshctl_words",
            "    set -l skip 0",
            "    for word in (commandline -opc)[2..-1]",
            "        if test $skip = 1",
            "            set skip 0",
            "            continue",
            "        end",
            "        switch $word",
            "            case \(valued.map { "'\($0)'" }.joined(separator: " "))",
            "                set skip 1",
            "            case '-*'",
            "            case '*'",
            "                echo $word",
            "        end",
            "    end",
            "end",
            "function __meshctl_at",
            "    set -l words (__meshctl_words)",
            "    test \"$words\" = \"$argv\"",
            "end",
            "function __meshctl_in",
            "    set -l words (__meshctl_words)",
            "    set -l length (count $argv)",
            "    test \"$words[1..$length]\" = \"$argv\"",
            "end",
            "function __meshctl_names",
            "    set -l words (commandline -opc)",
            "    set -l at (contains -i -- --control $words)",
            "    and set -l control --control $words[(math $at + 1)]",
            "    meshctl $control __complete $argv[1] 2>/dev/null",
            "end",
            "complete -c meshctl -f",
        ]
        lines += Catalog.globals.map { fishOption($0, condition: nil) }
        for command in Catalog.visible {
            let parent = command.path.dropLast().joined(separator: " ")
            let at = parent.isEmpty ? "__meshctl_at" : "__meshctl_at \(parent)"
            lines.append(
                "complete -c meshctl -n '\(at)' -a '\(command.path[command.path.count - 1])' "
                    + "-d \(fishQuoted(command.summary))")
        }
        for command in Catalog.visible {
            lines += command.options.map { fishOption($0, condition: "__meshctl_in \(command.name)") }
            if let operand = command.operands.first, let words = fishWords(operand.completion) {
                lines.append("complete -c meshctl -n '__meshctl_at \(command.name)' -a \(words)")
            }
        }
        return lines
    }

    private static func fishOption(_ option: Option, condition: String?) -> String {
        var line = "complete -c meshctl"
        if let condition { line += " -n '\(condition)'" }
        if let short = option.short { line += " -s \(short)" }
        line += " -l \(option.name)"
        if option.value != nil {
            line += option.completion == .files ? " -r -F" : " -x"
            if let words = fishWords(option.completion) { line += " -a \(words)" }
        }
        return line + " -d \(fishQuoted(option.summary))"
    }

    private static func fishWords(_ completion: Completion) -> String? {
        switch completion {
        case .nothing, .files: nil
        case .choices(let choices): "'\(choices.joined(separator: " "))'"
        case .services: "'(__meshctl_names services)'"
        case .breakers: "'(__meshctl_names breakers)'"
        case .commands: "'\(names(below: []))'"
        }
    }

    private static func fishQuoted(_ text: String) -> String {
        "'" + text.map { "'\\".contains($0) ? "\\\($0)" : "\($0)" }.joined() + "'"
    }
}
