package fs

import (
	"bufio"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// subject is somebody who wants to do something with a file: a user in groups.
type subject struct {
	fuse.Owner
	groups []uint32 // supplementary
}

// subjectOf is the caller of a request that has not been answered yet.
func subjectOf(caller *fuse.Caller) *subject {
	groups, _ := credentials(*caller)
	return &subject{caller.Owner, groups}
}

// in says whether the subject is in a group.
func (s *subject) in(gid uint32) bool { return s.Gid == gid || slices.Contains(s.groups, gid) }

// may says whether the subject has all of the permission bits want (of 7) for a node. An ACL it does not know: of what has one
// only the owner may.
func (s *subject) may(n *node, want uint32) bool {
	if s.Uid == 0 {
		return true
	}
	attr := guardedAttr(n)
	have := attr.Mode
	switch {
	case s.Uid == attr.Uid:
		have >>= 6
	case s.in(attr.Gid):
		have >>= 3
	}
	return have&want == want
}

// keepsSetgid reports whether a caller may leave setgid on a file of a group: one of the group, or with CAP_FSETID. That
// is all the host kernel asks for files that the group cannot execute (setattr_should_drop_sgid in fs/attr.c),
// but the request names one group of the caller only and no capability. The rest is in /proc, until the call returns.
func keepsSetgid(caller fuse.Caller, gid uint32) bool {
	if caller.Gid == gid {
		return true
	}
	groups, capable := credentials(caller)
	return capable || slices.Contains(groups, gid)
}

// credentials is the supplementary groups of a caller, and whether it has CAP_FSETID. Of one that cannot be seen it is
// none, and root has.
func credentials(caller fuse.Caller) (groups []uint32, fsetid bool) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", caller.Pid))
	if err != nil {
		return nil, caller.Uid == 0
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		switch key, value, _ := strings.Cut(lines.Text(), ":"); key {
		case "Groups":
			groups = parseGroups(value)
		case "CapEff":
			set, _ := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
			return groups, set&(1<<unix.CAP_FSETID) != 0
		}
	}
	return groups, caller.Uid == 0
}

func parseGroups(list string) (groups []uint32) {
	for _, field := range strings.Fields(list) {
		if id, err := strconv.ParseUint(field, 10, 32); err == nil {
			groups = append(groups, uint32(id))
		}
	}
	return groups
}

// setIDKill says which bits a change of the bytes or the owner of a program takes from its mode.
type setIDKill uint32

// setIDKill is what a change by a caller takes: setuid, and setgid where the group can execute the file or the caller may
// not give that group (should_remove_sgid in the host kernel's fs/attr.c).
func (n *node) setIDKill(caller fuse.Caller) setIDKill {
	n.mu.Lock()
	perm, gid := n.meta.perm, n.meta.gid
	n.mu.Unlock()
	kill := setIDKill(syscall.S_ISUID)
	if perm&syscall.S_ISGID != 0 && (perm&syscall.S_IXGRP != 0 || !keepsSetgid(caller, gid)) {
		kill |= syscall.S_ISGID
	}
	return kill
}

// setIDKillUnlessCapable is setIDKill for a request that does not say whether the caller has CAP_FSETID, with which
// nothing is taken.
func (n *node) setIDKillUnlessCapable(caller fuse.Caller) setIDKill {
	const either = syscall.S_ISUID | syscall.S_ISGID
	n.mu.Lock()
	perm := n.meta.perm
	n.mu.Unlock()
	if perm&either == 0 {
		return 0
	}
	if _, capable := credentials(caller); capable {
		return 0
	}
	return n.setIDKill(caller)
}

// mayKill reports whether a caller may take bits away, as it may by chmod(2).
func (n *node) mayKill(caller fuse.Caller, kill setIDKill) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.meta.perm&uint32(kill) == 0 || caller.Uid == 0 || caller.Uid == n.meta.uid
}

// killSetIDLocked takes the bits away.
// +checklocks:n.mu
func (n *node) killSetIDLocked(kill setIDKill) { n.meta.perm &^= uint32(kill) }
