// Where a UNIX socket lies that only its owner may reach. A mode on the socket is worth nothing where
// somebody else can put another socket in its place, so every directory on the way is looked at, from the
// root on, each through a descriptor of the one before: what was found good cannot be swapped afterwards
// but by those who are trusted anyway.
import CMeshSystem
import Glibc

/// Opens directories that nobody but root and this user can change.
enum SocketDirectory {
    private static let operation = "use the directory"
    private static let advice = "choose a directory of root's with mode 0700, such as /run/mesh-agent"
    /// As many symbolic links as the kernel follows (path_resolution(7)).
    private static let mostLinks = 40

    /// Opens a directory, for reading; it is made with mode 0700 if it is missing, its parents are not.
    ///
    /// On the way a directory may be writable for others only if it is sticky, as `/tmp` is, and a symbolic
    /// link must belong to root or this user. The last one must be no link, and writable for its owner alone.
    /// - Throws: `EACCES` for one that somebody else could change, `ELOOP` for one that is a link, else what
    ///   opening it says.
    static func open(_ path: String) throws(SystemError) -> FileDescriptor {
        let whole = path.hasPrefix("/") ? path : try workingDirectory() + "/" + path
        var names = Array(whole.split(separator: "/").map(String.init).reversed())
        var links = 0
        var place = "/"
        var current = try opening("/", "/")
        try check(current, place, isLast: names.isEmpty)
        while let name = names.popLast() {
            let isLast = names.isEmpty
            let next = place == "/" ? "/\(name)" : "\(place)/\(name)"
            if isLast, mkdirat(current.descriptor, name, 0o700) != 0, errno != EEXIST {
                throw SystemError("create the directory", next)
            }
            let found = try opening(name, next, at: current.descriptor)
            let status = try found.status(next)
            guard status.st_mode & S_IFMT == S_IFLNK else {
                try check(found, next, isLast: isLast)
                current = found
                place = next
                continue
            }
            links += 1
            guard !isLast, links <= mostLinks else {
                throw SystemError(
                    operation, next, errno: ELOOP,
                    reason: isLast ? "it is a symbolic link" : "there are too many symbolic links",
                    hint: advice)
            }
            try checkOwner(status, next)
            let target = try target(of: found, next)
            names += target.split(separator: "/").map(String.init).reversed()
            if target.hasPrefix("/") {
                current = try opening("/", "/")
                place = "/"
            }
        }
        return try reading(current, place)
    }

    private static func workingDirectory() throws(SystemError) -> String {
        var buffer = [CChar](repeating: 0, count: Int(PATH_MAX))
        guard getcwd(&buffer, buffer.count) != nil else { throw SystemError("find", "the working directory") }
        return buffer.withUnsafeBufferPointer { String(cString: $0.baseAddress!) }
    }

    private static func opening(
        _ name: String, _ path: String, at directory: Int32 = AT_FDCWD
    ) throws(SystemError) -> FileDescriptor {
        let opened = retrying { mesh_open_place(directory, name) }
        guard opened >= 0 else { throw SystemError(operation, path) }
        return FileDescriptor(owning: opened)
    }

    /// The same directory with a descriptor that can be locked and read.
    private static func reading(_ found: borrowing FileDescriptor, _ path: String) throws(SystemError)
        -> FileDescriptor
    {
        let opened = retrying { openat(found.descriptor, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC) }
        guard opened >= 0 else { throw SystemError(operation, path) }
        return FileDescriptor(owning: opened)
    }

    private static func check(
        _ directory: borrowing FileDescriptor, _ path: String, isLast: Bool
    ) throws(SystemError) {
        let status = try directory.status(path)
        guard status.st_mode & S_IFMT == S_IFDIR else {
            throw SystemError(operation, path, errno: ENOTDIR, hint: advice)
        }
        try checkOwner(status, path)
        let isOpen = status.st_mode & (S_IWGRP | S_IWOTH) != 0
        guard !isOpen || !isLast && status.st_mode & S_ISVTX != 0 else {
            let mode = String(status.st_mode & 0o7777, radix: 8)
            throw SystemError(
                operation, path, errno: EACCES,
                reason: "with mode \(mode), others could put a socket of their own there", hint: advice)
        }
    }

    private static func checkOwner(_ status: stat, _ path: String) throws(SystemError) {
        guard status.st_uid == 0 || status.st_uid == geteuid() else {
            let owner = userName(ofUID: status.st_uid) ?? "uid \(status.st_uid)"
            throw SystemError(
                operation, path, errno: EACCES,
                reason: "it belongs to \(owner), who could put another socket there", hint: advice)
        }
    }

    private static func target(of link: borrowing FileDescriptor, _ path: String) throws(SystemError)
        -> String
    {
        var buffer = [UInt8](repeating: 0, count: Int(PATH_MAX))
        // An empty path: the link that is open (readlinkat(2)).
        let length = readlinkat(link.descriptor, "", &buffer, buffer.count)
        guard length > 0 else { throw SystemError("read the link", path) }
        return String(decoding: buffer.prefix(length), as: UTF8.self)
    }
}

extension FileDescriptor {
    /// What kind of file this is, whose, and who may do what with it.
    fileprivate func status(_ path: String) throws(SystemError) -> stat {
        var status = stat()
        guard fstat(descriptor, &status) == 0 else { throw SystemError("look at", path) }
        return status
    }
}
