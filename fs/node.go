package fs

import (
	"math"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"memfs/mapping"
	"memfs/mm"
	"memfs/mm/process"
)

const (
	permMask = 07777

	// cacheTime is how long the host kernel may believe names and attributes: all changes pass through it.
	cacheTime = time.Hour
	// writerCacheTime is the same for the attributes of a file that is open for writing, whose blocks the host cannot count
	// by itself. If it were 0 the host would ask before each write(2), which makes small writes twelve times slower.
	writerCacheTime = 10 * time.Millisecond

	// atimeAge is the age at which an access time is renewed even though nothing changed since (relatime).
	atimeAge = 24 * time.Hour

	maxLinks = math.MaxInt32

	// smallDeletion is how many 512-byte blocks are given back while a FORGET is handled: go-fuse reads no further request
	// meanwhile, if it has no other reader.
	smallDeletion = 8 << 10
)

// Records charged to the budget, in bytes.
const (
	entryBytes = 64                         // a name, its bytes not counted
	nodeBytes  = mm.InodeBytes - entryBytes // a node without a name, with its section
	xattrBytes = 64                         // an extended attribute, its bytes not counted
)

// timestamp is a time in an attribute. It is kept small; there are three in each node.
type timestamp struct {
	sec  int64
	nsec uint32
}

func makeTimestamp(t time.Time) timestamp {
	return timestamp{sec: t.Unix(), nsec: uint32(t.Nanosecond())}
}

// timeNow is the time that attributes get.
func timeNow() timestamp { return makeTimestamp(time.Now()) }

// after reports whether t is later than u.
func (t timestamp) after(u timestamp) bool { return t.sec > u.sec || t.sec == u.sec && t.nsec > u.nsec }

// metadata is what stat(2) shows of a node and chmod(2) and its kin change.
type metadata struct {
	perm                uint32 // permission bits, with setuid, setgid and sticky
	uid, gid            uint32
	nlink               uint32
	atime, mtime, ctime timestamp
	btime               timestamp // of birth; it never changes
}

// references say why a node is still needed.
type references struct {
	lookups uint64 // that the host kernel has not forgotten
	handles uint32 // open, regular files only
	writers uint32 // of which open for writing
	gone    bool   // nothing refers to it and nothing will
}

// node is one file, directory, symlink, fifo, socket or device.
type node struct {
	id      uint64
	fs      *fileSystem
	kind    uint32           // S_IF… bits
	rdev    uint32           // +checklocksignore: of a device; it never changes
	section *mapping.Section // the contents of a regular file, else nil
	dir     *directory       // the names in a directory, else nil; what is in it is guarded by fs.tree
	target  string           // of a symlink

	// entry is one of the node's names, the only one unless it has hard links. It is nil for the root, for a node without
	// a name, and when the one that it was is gone while others remain. It is guarded by fs.tree, which checklocks cannot
	// say: the lock is another object's.
	entry *entry

	dirtier atomic.Uint64 // thread that last opened it for writing; see owners.go
	filler  atomic.Uint64 // thread whose write came last

	recording atomic.Pointer[recording] // of its faults; nil is none

	mu sync.Mutex
	// +checklocks:mu
	meta metadata
	// +checklocks:mu
	refs references
	// +checklocks:mu
	xattrs map[string][]byte
	// +checklocks:mu
	protect process.Protection // what the attributes say of it
	// +checklocks:mu
	filling bool // a file that inherited a protection without writing is still being written by who made it
	// +checklocks:mu
	records int // bytes charged to the budget for the node and its xattrs
	// +checklocks:mu
	failures uint32 // cached writes that the host kernel sent too late to tell the program of their failure…
	// +checklocks:mu
	failure fuse.Status // …and what became of the last
}

// seed is what a new node starts as.
type seed struct {
	mode       uint32 // type and permissions
	uid, gid   uint32
	rdev       uint32
	target     string
	accessACL  []byte // encoded, nil for none
	defaultACL []byte
	rules      map[string][]byte // by attribute
}

func (s *seed) xattrs() map[string][]byte {
	x := s.rules
	for name, value := range map[string][]byte{aclAccess: s.accessACL, aclDefault: s.defaultACL} {
		if value == nil {
			continue
		}
		if x == nil {
			x = make(map[string][]byte)
		}
		x[name] = value
	}
	return x
}

// newNode makes a node that has no name yet and puts it into the table. ENOSPC if the budget or nr_inodes has no room.
func (f *fileSystem) newNode(s seed) (*node, fuse.Status) {
	if f.inodes.Add(1) > f.most.Load() {
		f.inodes.Add(^uint64(0))
		return nil, enospc
	}
	xattrs := s.xattrs()
	records := nodeBytes + len(s.target)
	for name, value := range xattrs {
		records += xattrRecord(name, value)
	}
	if err := f.sys.ChargeRecord(records); err != nil {
		f.inodes.Add(^uint64(0))
		return nil, errno(err)
	}
	now := timeNow()
	n := &node{
		id:      f.nodes.newID(),
		fs:      f,
		kind:    s.mode & syscall.S_IFMT,
		rdev:    s.rdev,
		target:  s.target,
		meta:    metadata{perm: s.mode & permMask, uid: s.uid, gid: s.gid, atime: now, mtime: now, ctime: now, btime: now},
		xattrs:  xattrs,
		protect: protectionOf(xattrs),
		records: records,
	}
	switch n.kind {
	case syscall.S_IFREG:
		n.section = mapping.NewSection(f.sys, n)
		_, _ = n.section.SetRule(ruleOf(xattrs)) // it has no pages yet: nothing can fail
	case syscall.S_IFDIR:
		n.dir = &directory{}
		n.meta.nlink = 2
	}
	f.nodes.add(n)
	return n, fuse.OK
}

func (n *node) isDir() bool     { return n.kind == syscall.S_IFDIR }
func (n *node) isRegular() bool { return n.kind == syscall.S_IFREG }

// attr is what stat(2) shows.
func (n *node) attr() fuse.Attr {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.attrLocked()
}

// +checklocks:n.mu
func (n *node) attrLocked() fuse.Attr {
	m := &n.meta
	a := fuse.Attr{
		Ino:       n.id,
		Atime:     uint64(m.atime.sec),
		Mtime:     uint64(m.mtime.sec),
		Ctime:     uint64(m.ctime.sec),
		Atimensec: m.atime.nsec,
		Mtimensec: m.mtime.nsec,
		Ctimensec: m.ctime.nsec,
		Mode:      n.kind | n.shownPermLocked(),
		Nlink:     m.nlink,
		Owner:     fuse.Owner{Uid: m.uid, Gid: m.gid},
		Rdev:      n.rdev,
		Blksize:   mm.PageSize,
	}
	switch n.kind {
	case syscall.S_IFREG:
		a.Size, a.Blocks = uint64(n.section.Size()), n.section.Blocks()
	case syscall.S_IFDIR:
		a.Size = mm.PageSize
	case syscall.S_IFLNK:
		a.Size = uint64(len(n.target))
	}
	return a
}

// cacheTimeLocked is how long the host kernel may believe the attributes.
// +checklocks:n.mu
func (n *node) cacheTimeLocked() time.Duration {
	if n.refs.writers > 0 {
		return writerCacheTime
	}
	return cacheTime
}

func (n *node) getattr(out *fuse.AttrOut) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.attrOutLocked(out)
}

// +checklocks:n.mu
func (n *node) attrOutLocked(out *fuse.AttrOut) {
	out.SetTimeout(n.cacheTimeLocked())
	out.Attr = n.attrLocked()
}

// statx is getattr with the time of birth.
func (n *node) statx(out *fuse.StatxOut) {
	n.mu.Lock()
	defer n.mu.Unlock()
	out.SetTimeout(n.cacheTimeLocked())
	a := n.attrLocked()
	out.Statx = statxOf(&a)
	out.Mask |= unix.STATX_BTIME
	out.Btime = fuse.SxTime{Sec: uint64(n.meta.btime.sec), Nsec: n.meta.btime.nsec}
}

// statxOf is attributes as statx(2) has them. The host kernel takes nothing else from it but a time of birth, and answers
// for such attributes as STATX_ATTR_MOUNT_ROOT by itself.
func statxOf(a *fuse.Attr) fuse.Statx {
	return fuse.Statx{
		Mask:      unix.STATX_BASIC_STATS,
		Blksize:   a.Blksize,
		Nlink:     a.Nlink,
		Uid:       a.Uid,
		Gid:       a.Gid,
		Mode:      uint16(a.Mode),
		Ino:       a.Ino,
		Size:      a.Size,
		Blocks:    a.Blocks,
		Atime:     fuse.SxTime{Sec: a.Atime, Nsec: a.Atimensec},
		Mtime:     fuse.SxTime{Sec: a.Mtime, Nsec: a.Mtimensec},
		Ctime:     fuse.SxTime{Sec: a.Ctime, Nsec: a.Ctimensec},
		RdevMajor: unix.Major(uint64(a.Rdev)),
		RdevMinor: unix.Minor(uint64(a.Rdev)),
	}
}

// lookedUp answers a request that names the node, which counts as one lookup. False if the node is gone.
func (n *node) lookedUp(out *fuse.EntryOut) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.refs.gone {
		return false
	}
	n.refs.lookups++
	out.NodeId = n.id
	out.SetEntryTimeout(cacheTime)
	out.SetAttrTimeout(n.cacheTimeLocked())
	out.Attr = n.attrLocked()
	return true
}

// setattr changes size, mode, owner and times. While the host kernel caches a regular file, times are its own business:
// it sends them as given values, ctime included.
func (n *node) setattr(in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	if size, ok := in.GetSize(); ok {
		if st := n.mayChange(in.Valid&fuse.FATTR_FH != 0); n.section != nil && !st.Ok() {
			return st
		}
		if st := n.truncate(size); !st.Ok() {
			return st
		}
	}
	var kill setIDKill
	switch {
	case in.Valid&fuse.FATTR_KILL_SUIDGID != 0:
		kill = n.setIDKill(in.Caller)
	case n.chownsNothing(in):
		if kill = n.setIDKill(in.Caller); !n.mayKill(in.Caller, kill) {
			return fuse.EPERM
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.killSetIDLocked(kill)
	n.setattrLocked(in, timeNow())
	n.attrOutLocked(out)
	return fuse.OK
}

// chownsNothing reports whether a request is chown(2) with neither a user nor a group, which still takes setuid and setgid
// away. It is the only request of the host kernel that changes ctime, which of regular files alone it sends, and nothing
// else.
func (n *node) chownsNothing(in *fuse.SetAttrIn) bool {
	valid := in.Valid &^ (fuse.FATTR_FH | fuse.FATTR_LOCKOWNER)
	return n.isRegular() && valid == fuse.FATTR_CTIME || !n.isRegular() && !n.isDir() && valid == 0
}

// +checklocks:n.mu
func (n *node) setattrLocked(in *fuse.SetAttrIn, now timestamp) {
	m := &n.meta
	if n.isRegular() && in.Valid&(fuse.FATTR_SIZE|fuse.FATTR_UID|fuse.FATTR_GID) != 0 {
		n.removeXattrLocked(xattrCapability)
	}
	if mode, ok := in.GetMode(); ok {
		m.perm = mode
		n.chmodACLLocked(mode)
	}
	if uid, ok := in.GetUID(); ok {
		m.uid = uid
	}
	if gid, ok := in.GetGID(); ok {
		m.gid = gid
	}
	if t, ok := in.GetATime(); ok {
		m.atime = makeTimestamp(t)
	}
	if t, ok := in.GetMTime(); ok {
		m.mtime = makeTimestamp(t)
	} else if in.Valid&fuse.FATTR_SIZE != 0 {
		m.mtime = now
	}
	if t, ok := in.GetCTime(); ok {
		m.ctime = makeTimestamp(t)
	} else {
		m.ctime = now
	}
}

// changed stamps mtime and ctime.
func (n *node) changed() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.meta.mtime = timeNow()
	n.meta.ctime = n.meta.mtime
}

// accessed stamps atime after a READ or READDIR, as the flags of the mount say (mount(8): noatime, nodiratime, relatime,
// strictatime). The host kernel leaves it to us, so what it answers from its cache does not count.
func (n *node) accessed() {
	flags := n.fs.mountFlags.Load()
	if flags&(unix.MS_NOATIME|unix.MS_RDONLY) != 0 || flags&unix.MS_NODIRATIME != 0 && n.isDir() {
		return
	}
	now := timeNow()
	n.mu.Lock()
	defer n.mu.Unlock()
	if flags&unix.MS_STRICTATIME != 0 || n.meta.atimeStale(now) {
		n.meta.atime = now
	}
}

// atimeStale is the rule of relatime: the access time is renewed if it is not later than both other times, or a day old.
func (m *metadata) atimeStale(now timestamp) bool {
	return !m.atime.after(m.mtime) || !m.atime.after(m.ctime) || now.sec-m.atime.sec >= int64(atimeAge/time.Second)
}

// addLinks changes the link count, which stamps ctime.
func (n *node) addLinks(delta int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.meta.nlink += uint32(delta)
	n.meta.ctime = timeNow()
}

// forget takes lookups away.
func (n *node) forget(lookups uint64) {
	if n == n.fs.root {
		return
	}
	n.mu.Lock()
	n.refs.lookups -= min(lookups, n.refs.lookups)
	last := n.lastReferenceLocked()
	if !last && n.refs.lookups == 0 && n.section != nil {
		// Under the lock, so that no new lookup can be followed by a READ before the section has heard of it.
		n.section.Forgotten()
	}
	n.mu.Unlock()
	if last {
		n.destroy()
	}
}

// release ends the node if nothing refers to it any more.
func (n *node) release() {
	n.mu.Lock()
	last := n.lastReferenceLocked()
	n.mu.Unlock()
	if last {
		n.destroy()
	}
}

// lastReferenceLocked reports, once in the life of a node, that nothing refers to it any more.
// +checklocks:n.mu
func (n *node) lastReferenceLocked() bool {
	r := &n.refs
	if r.gone || n.meta.nlink > 0 || r.lookups > 0 || r.handles > 0 {
		return false
	}
	r.gone = true
	return true
}

// destroy gives back what the node has.
func (n *node) destroy() {
	f := n.fs
	f.nodes.remove(n)
	n.mu.Lock()
	records := n.records
	n.mu.Unlock()
	f.sys.ReleaseRecord(records)
	n.forgetRecording()
	f.inodes.Add(^uint64(0))
	switch {
	case n.section == nil:
	case n.section.Blocks() <= smallDeletion:
		n.section.Delete()
	default:
		f.deletions.start(n.section)
	}
}

// abandon is destroy for the end of the mount, when names and references count no more.
func (n *node) abandon() {
	n.mu.Lock()
	done := n.refs.gone
	n.refs.gone = true
	n.mu.Unlock()
	if done {
		return
	}
	if n.isDir() {
		n.fs.abandonNames(n)
	}
	n.destroy()
}
