// The programs that are attached to a cgroup, and what people call where they are.

/// A hook of a cgroup.
public struct CgroupHook: Sendable {
    /// What `meshctl status` calls it.
    public let name: String
    /// The program that is attached there.
    public let program: String

    /// All of them in the order in which they are attached: those that follow a connection before those that
    /// begin one, so that none is begun and then not followed.
    public static let all = [
        CgroupHook(name: "sock_ops", program: "mesh_sockops"),
        CgroupHook(name: "cgroup_skb ingress", program: "mesh_ingress"),
        CgroupHook(name: "cgroup_skb egress", program: "mesh_egress"),
        CgroupHook(name: "sock_release", program: "mesh_release"),
        CgroupHook(name: "connect4", program: "mesh_connect4"),
        CgroupHook(name: "connect6", program: "mesh_connect6"),
    ]
}
