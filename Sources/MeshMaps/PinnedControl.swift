// What pinned maps say of themselves, whatever their layout: looked at before anything else of them is.
import BPFRuntime
import CMeshABI
import Glibc
import MeshSystem

extension mesh_control {
    /// The control value of the maps that are pinned in a directory, as far as this layout knows it.
    /// - Throws: If they are not a set that an agent has marked as whole.
    public static func pinned(in directory: String) throws(SystemError) -> mesh_control {
        let path = PinDirectory.pin(of: PinDirectory.control, in: directory)
        let map = try BPFMap.pinned(at: path, name: PinDirectory.control)
        var control = mesh_control()
        let room = UnsafeMutableRawBufferPointer.allocate(
            byteCount: max(map.valueSize, MemoryLayout<mesh_control>.size), alignment: 8)
        defer { room.deallocate() }
        room.initializeMemory(as: UInt8.self, repeating: 0)
        var key: UInt32 = 0
        guard try map.lookup(key: &key, into: room.baseAddress!) else {
            throw SystemError("read", directory, errno: ENOENT)
        }
        withUnsafeMutableBytes(of: &control) {
            $0.copyMemory(from: UnsafeRawBufferPointer(rebasing: room[..<$0.count]))
        }
        guard control.instance != 0 else {
            throw SystemError("use", directory, errno: EINVAL, reason: "these maps are not whole")
        }
        return control
    }
}
