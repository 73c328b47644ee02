package fs

import (
	"strings"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"memfs/fs/ctl"
	"memfs/mm/process"
)

// The protection of a file is a PAGE_ constant that bounds what anybody may do with its contents, root included, beside the
// permissions of its mode (docs/protection.md). It is a part of the rule (rule.go), kept as user.memfs.protection.
//
//	                 open     open for      execute,
//	                          writing,      show x
//	                          truncate
//	NOACCESS         no       no            no
//	READONLY         yes      no            no
//	WRITECOPY        yes      no            no
//	READWRITE        yes      yes           no
//	EXECUTE…         yes      no            yes       EXECUTE, EXECUTE_READ, EXECUTE_WRITECOPY
//	EXECUTE_READWRITE yes     yes           yes       what a file has that nobody protected
//
// What programs wrote before a protection takes writing away is stored before the protection holds; if that cannot be, the
// protection is refused. What they write afterwards, through handles and mappings that they have, is refused as writes that
// find no space are: the host's copy of it goes, and fsync or close say so. Reading goes on through what is open.
//
// A file that is made in a directory whose protection it inherits can be written through the handle that made it, until
// the last writable handle is closed.

// fmodeExec is the flag of an OPEN for execve(2), which is not among those of open(2).
const fmodeExec = 0x20

// defaultProtection is what a file has that nobody protected.
const defaultProtection = process.ExecuteReadWrite

// parseProtection reads one of the constants that a file can have.
func parseProtection(s string) (process.Protection, bool) {
	p, ok := process.ParseProtection(s)
	return p, ok && p == p.Base()
}

// protectionOf is what attributes say.
func protectionOf(xattrs map[string][]byte) process.Protection {
	if value, ok := xattrs[rulePrefix+ctl.RuleProtection]; ok {
		if p, ok := parseProtection(string(value)); ok {
			return p
		}
	}
	return defaultProtection
}

// sharedWritable says whether the bytes of a file can be changed under a protection: a copy on write changes none.
func sharedWritable(p process.Protection) bool {
	return p&(process.ReadWrite|process.ExecuteReadWrite) != 0
}

// protection is the node's.
func (n *node) protection() process.Protection {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.protect
}

// mayAccess says whether a simulated process may open the file with this access. What it opens bounds its sections: one
// that executes needs a handle that may.
func (n *node) mayAccess(access uint32) bool {
	have, want := n.protection(), wanted(access)
	switch {
	case !have.Readable(), want&mayWrite != 0 && !sharedWritable(have):
		return false
	}
	return have.Executable() || !executes(access) && access&process.GenericAll == 0
}

// mayOpen says whether the protection lets an OPEN with these flags be.
func (n *node) mayOpen(flags uint32) fuse.Status {
	p := n.protection()
	switch {
	case !p.Readable(),
		(flags&syscall.O_ACCMODE != syscall.O_RDONLY || flags&syscall.O_TRUNC != 0) && !sharedWritable(p),
		flags&fmodeExec != 0 && (!p.Executable() || n.fs.noExec()):
		return fuse.EACCES
	}
	return fuse.OK
}

// noExec says whether no file is executed now: the policy is AlwaysOn. At mount that makes the mount noexec, which the kernel sees
// to for mappings as well; a live one is not asked for those.
func (f *fileSystem) noExec() bool {
	return f.control != nil && f.control.processes.machine.Policy() == process.AlwaysOn
}

// mayChange says whether the contents may change now. With a handle, that may be one that made the file.
func (n *node) mayChange(handle bool) fuse.Status {
	n.mu.Lock()
	defer n.mu.Unlock()
	if sharedWritable(n.protect) || handle && n.filling {
		return fuse.OK
	}
	return fuse.EACCES
}

// shownPermLocked is the permission bits as programs see them.
// +checklocks:n.mu
func (n *node) shownPermLocked() uint32 {
	if n.section != nil && !n.protect.Executable() {
		return n.meta.perm &^ 0111
	}
	return n.meta.perm
}

// beforeProtection has everything stored that programs have written, if a protection will take writing away.
func (n *node) beforeProtection(value string) error {
	p, ok := parseProtection(value)
	if !ok || n.section == nil || sharedWritable(p) || n.mayChange(true) != fuse.OK || !n.openForWriting() {
		return nil
	}
	if !n.fs.enterGate() {
		return syscall.EBUSY
	}
	defer n.fs.leaveGate()
	return n.writeBack()
}

// followProtection makes what the attributes say hold. The host asks for the mode again.
func (n *node) followProtection() {
	n.mu.Lock()
	old := n.protect
	n.protect = protectionOf(n.xattrs)
	changed := n.protect != old
	if changed {
		n.filling = false
	}
	n.mu.Unlock()
	if server := n.fs.server; changed && n.section != nil && server != nil {
		// Now, not some time: the next execve must see the x that came back. The host only marks its inode, which whoever
		// asked for this keeps from going away.
		_ = server.InodeNotify(n.id, -1, 0)
	}
}

// inheritWord is what a protection file takes besides a constant.
const inheritWord = "inherit"

// setProtection is a write to a protection file of .proc/files.
func (n *node) setProtection(text []byte) fuse.Status {
	value := strings.TrimSpace(string(text))
	if value == inheritWord {
		parent := n.parent()
		if parent == nil {
			return fuse.EINVAL
		}
		value = parent.protection().String()
	}
	p, ok := parseProtection(value)
	if !ok {
		return fuse.EINVAL
	}
	_, err := n.SetRule(ctl.RuleProtection, p.String())
	return errno(err)
}

// parent is a directory that the node has a name in; nil if there is none.
func (n *node) parent() *node {
	n.fs.tree.RLock()
	defer n.fs.tree.RUnlock()
	if n.entry == nil {
		return nil
	}
	return n.entry.parent
}
