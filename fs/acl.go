package fs

import (
	"encoding/binary"
	"syscall"
)

// POSIX ACLs as Linux keeps them in extended attributes. The host kernel decides by them; we hand them on to new nodes and
// keep them in step with the mode, as posix_acl(5) and Linux's fs/posix_acl.c say.
const (
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default"

	aclVersion = 2
)

// isACL reports whether an extended attribute is an ACL.
func isACL(name string) bool { return name == aclAccess || name == aclDefault }

// aclTag says whom an entry is about.
type aclTag uint16

const (
	aclUserObj  aclTag = 0x01 // the owner
	aclUser     aclTag = 0x02
	aclGroupObj aclTag = 0x04 // the owning group
	aclGroup    aclTag = 0x08
	aclMask     aclTag = 0x10
	aclOther    aclTag = 0x20
)

type aclEntry struct {
	tag  aclTag
	perm uint16 // rwx
	id   uint32 // of a user or group
}

// acl is a valid list: one owner, owning group and others; a mask if it names users or groups; in that order.
type acl []aclEntry

// parseACL decodes the value of an ACL attribute. False if it is not a valid list.
func parseACL(b []byte) (acl, bool) {
	if len(b) < 4 || (len(b)-4)%8 != 0 || binary.LittleEndian.Uint32(b) != aclVersion {
		return nil, false
	}
	var list acl
	for b = b[4:]; len(b) > 0; b = b[8:] {
		list = append(list, aclEntry{
			tag:  aclTag(binary.LittleEndian.Uint16(b)),
			perm: binary.LittleEndian.Uint16(b[2:]),
			id:   binary.LittleEndian.Uint32(b[4:]),
		})
	}
	return list, list.valid()
}

// encode is the value of the attribute.
func (l acl) encode() []byte {
	b := binary.LittleEndian.AppendUint32(make([]byte, 0, 4+8*len(l)), aclVersion)
	for _, e := range l {
		b = binary.LittleEndian.AppendUint16(b, uint16(e.tag))
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	return b
}

// valid checks order and completeness: each tag may only come when the one before it allows it.
func (l acl) valid() bool {
	next, named := aclUserObj, false
	for _, e := range l {
		if e.perm&^7 != 0 {
			return false
		}
		switch {
		case e.tag == aclUserObj && next == aclUserObj:
			next = aclUser
		case e.tag == aclUser && next == aclUser, e.tag == aclGroup && next == aclGroup:
			named = true
		case e.tag == aclGroupObj && next == aclUser:
			next = aclGroup
		case e.tag == aclMask && next == aclGroup:
			next = aclOther
		case e.tag == aclOther && (next == aclOther || next == aclGroup && !named):
			next = 0
		default:
			return false
		}
	}
	return next == 0
}

// class is the entry that a class of the mode's permission bits stands for: with a mask, the group bits are the mask.
func (l acl) class(tag aclTag) *aclEntry {
	var found *aclEntry
	for i := range l {
		if e := &l[i]; e.tag == tag || tag == aclGroupObj && e.tag == aclMask {
			found = e
		}
	}
	return found
}

// extended reports whether the list says more than a mode can.
func (l acl) extended() bool { return len(l) > 3 }

// perm is the permission bits that the list amounts to.
func (l acl) perm() uint32 {
	return uint32(l.class(aclUserObj).perm)<<6 | uint32(l.class(aclGroupObj).perm)<<3 | uint32(l.class(aclOther).perm)
}

// setPerm changes the list as chmod does.
func (l acl) setPerm(perm uint32) {
	l.class(aclUserObj).perm = uint16(perm >> 6 & 7)
	l.class(aclGroupObj).perm = uint16(perm >> 3 & 7)
	l.class(aclOther).perm = uint16(perm & 7)
}

// restrict takes away what a permission does not have, as for a file created with it under this default list.
func (l acl) restrict(perm uint32) {
	l.class(aclUserObj).perm &= uint16(perm >> 6 & 7)
	l.class(aclGroupObj).perm &= uint16(perm >> 3 & 7)
	l.class(aclOther).perm &= uint16(perm & 7)
}

const rwxAll = syscall.S_IRWXU | syscall.S_IRWXG | syscall.S_IRWXO

// inheritACL applies the default ACL of the directory, or the umask if it has none.
func (s *seed) inheritACL(dflt []byte, umask uint32) {
	list, ok := parseACL(dflt)
	if !ok {
		s.mode &^= umask & rwxAll
		return
	}
	if s.mode&syscall.S_IFMT == syscall.S_IFDIR {
		s.defaultACL = dflt
	}
	list.restrict(s.mode)
	s.mode = s.mode&^rwxAll | list.perm()
	if list.extended() {
		s.accessACL = list.encode()
	}
}

// chmodACLLocked brings the access ACL in step with a new mode. The value keeps its length.
// +checklocks:n.mu
func (n *node) chmodACLLocked(mode uint32) {
	list, ok := parseACL(n.xattrs[aclAccess])
	if !ok {
		return
	}
	list.setPerm(mode)
	n.xattrs[aclAccess] = list.encode()
}
