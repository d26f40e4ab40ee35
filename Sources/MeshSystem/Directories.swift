// Small things about directories: what is in one, and where a path really leads.
import Glibc

/// The names in a directory, sorted, without `.` and `..`; none if it is not there.
public func directoryNames(_ path: String) -> [String] {
    guard let directory = opendir(path) else { return [] }
    defer { closedir(directory) }
    var names: [String] = []
    while let entry = readdir(directory) {
        let name = withUnsafeBytes(of: entry.pointee.d_name) { bytes in
            String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
        }
        if name != "." && name != ".." { names.append(name) }
    }
    return names.sorted()
}

/// The directory part of a path.
public func directory(of path: String) -> String {
    guard let slash = path.lastIndex(of: "/") else { return "." }
    return slash == path.startIndex ? "/" : String(path[..<slash])
}

/// A path from the root, with the links on the way to its last part followed as far as they are there.
public func absolutePath(_ path: String) -> String {
    let name = path.split(separator: "/").last.map(String.init) ?? ""
    var parent = directory(of: path)
    if let resolved = realpath(parent, nil) {
        defer { free(resolved) }
        parent = String(cString: resolved)
    } else if !parent.hasPrefix("/"), let current = realpath(".", nil) {
        defer { free(current) }
        parent = String(cString: current) + "/" + parent
    }
    return parent == "/" ? "/" + name : parent + "/" + name
}

/// Whether there is something at a path.
public func exists(_ path: String) -> Bool {
    var status = stat()
    return lstat(path, &status) == 0
}
