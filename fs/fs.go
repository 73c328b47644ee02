// Package fs is the file system: nodes with names and attributes on go-fuse's RawFileSystem, whose regular files are
// section objects (package mapping).
//
// The host kernel does more here than for most file systems. It checks permissions (default_permissions), resolves locks,
// and with the write-back cache it owns the size and the times of a regular file for as long as it caches the inode. Its
// page cache is the mapped views of our sections: a READ is a page fault, a WRITE is dirty data leaving a view, and
// host.go is how the memory manager reaches those views.
//
// # Files
//
//	fs.go       mounting, and the parts of a mount
//	raw.go      go-fuse's interface: every request goes to a node or to the control tree
//	timed.go    the same, taking the time
//	notices.go  notices of low memory and of plenty
//	node.go     what every node has: attributes, times, counts, the end of a node
//	table.go    nodes by id, handles by number
//	tree.go     names: lookup, create, link, unlink, rename
//	dir.go      one directory: names in order, with cookies that stay
//	readdir.go  READDIR and READDIRPLUS
//	file.go     open, read, write, fallocate, lseek, flush, release
//	deletion.go sections that are given back beside the requests
//	host.go     the mm.Host that a regular file is
//	xattr.go    extended attributes
//	acl.go      POSIX ACLs: valid, inherited, in step with the mode
//	caller.go   what a caller may do beyond what the host kernel checks: setuid and setgid
//	bdi.go      the mount's backing device: read-ahead, bound on dirty data
//	errno.go    mm.Status to errno
//	control.go  the control tree, .proc
//	process.go  simulated processes in it
//	program.go  real programs' processes in it
//	owners.go   who filled the mount
//	memory.go   the address spaces of processes as files
//	faults.go   recordings of a file's faults
//	rule.go     rules for files' pages, as attributes
//	section.go  .proc/sections: named sections as files
//	files.go    files as simulated processes use them
//
// # Node ids
//
// Real nodes are numbered from 1, the root, and a number is never used again, so generations are always 0 (a file handle
// of the host is made of both). Ids with bit 62 belong to the control tree.
//
// # The life of a node
//
// A node is in the table while it has a name or the host kernel has looked it up. FORGET takes lookups away: with none
// left, a node with a name learns that nothing of it is cached (Section.Forgotten), and one without a name is gone, with
// its contents. A node is charged to the budget when it is made; so is every name.
//
// # Locks, in order
//
//	fileSystem.tree      all names: every directory's entries, node.entry
//	  node.mu            one node's attributes, counts and xattrs; never two nodes at once
//	    locks of mapping and mm
//	nodeTable, handleTable: leaf locks
//
// No lock is held while a section does I/O, while the budget is charged, across the launderer, or across a notification
// to the host kernel. READ and WRITE wait for store I/O only. LSEEK (and the control files) may wait for the host to write
// a file back; two gates let only so many wait that requests are left for what they wait for.
package fs

import (
	"errors"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"memfs/fs/ctl"
	"memfs/mm"
	"memfs/mm/process"
)

// Options says what to mount and how.
type Options struct {
	Mountpoint string
	System     *mm.System
	Launderer  Launderer // nil: none, or set later by Server.SetLaunderer
	Inodes     uint64    // nr_inodes: most nodes at once, the root included; 0 = what the budget says

	ProcName    string // of the control tree in the root; "" = ".proc"
	ProcVisible bool   // list it in the root

	NX process.Policy // DEP boot policy of simulated processes

	Mode, UID, GID uint32 // permission bits and owner of the root

	Source      string  // what the mount table calls the mounted thing; "" = "memfs"
	Flags       uintptr // MS_… bits of mount(2); those on access times also say how atime is kept
	AllowOther  bool    // let other users in
	DirectMount bool    // mount(2) by ourselves, as root, with setuid files and devices allowed; else through fusermount3

	MaxRequest  int // bytes of the largest READ and WRITE; 0 = 1 MiB
	MaxInflight int // bytes of request buffers in use at once; 0 = no limit

	// OpenPageFile makes a page file for the command pagefile add; nil: there is no such command.
	OpenPageFile func(spec string) (mm.PageFileConfig, error)
	// Inject has page files fail, for the command inject; nil: it is refused.
	Inject func(faults string) (before uint64, err error)

	Version string               // of memfs, for .proc/version
	Facts   func() [][2]string   // further lines of .proc/version: key, value
	Fatal   func(any, []byte)    // a handler panicked: log value and stack, end the process. nil = panic on
	Log     func(string, ...any) // warnings; nil = none
}

// Launderer is the child process that opens files of the mount by handle on the daemon's behalf, which must not touch
// its own mount. Node ids are as in this package's doc; every generation is 0.
type Launderer interface {
	// WriteBack has the host kernel send what programs have written in [off, off+n) of a node (n < 0: to the end). It
	// returns when that is done but before the file is closed again, because the close waits for the inode lock that the
	// program behind an LSEEK holds. ESTALE and ENOENT mean that the host has nothing of that node.
	WriteBack(node uint64, off, n int64) error
	// Truncate sets the size of a file as ftruncate(2) does, by way of the host kernel, which owns the sizes of files.
	Truncate(node uint64, size int64) error
	// Extend makes a file at least size bytes long, likewise. It never makes one shorter, whatever its size is at the moment.
	Extend(node uint64, size int64) error
	// Close ends the child. A second call does nothing.
	Close() error
}

const (
	maxNameLen     = 255
	defaultRequest = 1 << 20
	// maxSeeks is how many LSEEKs wait for a write-back at once. go-fuse keeps less than 1 KiB of a request without data, so
	// that these hinder no WRITE; and a program does not expect lseek(2) to be refused.
	maxSeeks      = 128
	maxBackground = 64 // READs and WRITEs that the host kernel sends ahead, unasked
)

// Server is one live mount.
type Server struct {
	fs         *fileSystem
	mountpoint string
	direct     bool
	done       chan struct{}
}

// Mount mounts a new, empty file system and serves it; it is live when Mount returns.
func Mount(o Options) (*Server, error) {
	mountpoint, err := realPath(o.Mountpoint)
	if err != nil {
		return nil, err
	}
	f, err := newFileSystem(o)
	if err != nil {
		return nil, err
	}
	f.pace = processors()
	server, err := fuse.NewServer(timed{f}, mountpoint, f.mountOptions())
	s := &Server{fs: f, mountpoint: mountpoint, direct: o.DirectMount, done: make(chan struct{})}
	if err != nil {
		if f.initFailed(err) {
			err = errors.Join(err, s.unmount())
		}
		f.pace.close()
		f.shutdown()
		return nil, fmt.Errorf("mount %s: %w", mountpoint, err)
	}
	closeOnExec("/dev/fuse")
	go func() {
		server.Serve()
		f.pace.close()
		f.shutdown()
		close(s.done)
	}()
	f.tuneBDI(mountpoint)
	return s, nil
}

// Wait returns when the mount has ended, whoever ended it, and the contents of all files are given back.
func (s *Server) Wait() { <-s.done }

// Unmount takes the mount away. EBUSY if a program still uses it; nothing has changed then.
func (s *Server) Unmount() error {
	select {
	case <-s.done:
		return nil
	default:
	}
	err := s.unmount()
	// A file that was closed a moment ago may still be on its way out of the host kernel.
	for delay := time.Millisecond; err != nil && delay < 100*time.Millisecond; delay *= 3 {
		time.Sleep(delay)
		err = s.unmount()
	}
	if err != nil {
		return fmt.Errorf("unmount %s: %w", s.mountpoint, err)
	}
	s.Wait()
	return nil
}

func (s *Server) unmount() error {
	if s.direct {
		return unix.Unmount(s.mountpoint, unix.UMOUNT_NOFOLLOW)
	}
	out, err := exec.Command(fusermount(), "-u", "--", s.mountpoint).CombinedOutput()
	if text := strings.TrimSpace(string(out)); err != nil && text != "" {
		return errors.New(text)
	}
	return err
}

// fusermount is the program that unmounts for those who may not.
func fusermount() string {
	for _, name := range []string{"fusermount3", "/bin/fusermount3", "fusermount"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	return "/bin/fusermount"
}

// Path is a path of a file from the root of the mount, empty if it has none.
func (s *Server) Path(node uint64) string {
	if n := s.fs.nodes.get(node); n != nil {
		return n.path()
	}
	return ""
}

// SetLaunderer gives the mount its launderer, which needs the live mount to start. The server closes it at the end.
func (s *Server) SetLaunderer(l Launderer) { s.fs.setLaunderer(l) }

// SetFlags tells the mount its flags, MS_… bits, after a remount: the host kernel acts on all of them but those on access
// times, and does not tell us.
func (s *Server) SetFlags(flags uintptr) { s.fs.mountFlags.Store(uint64(flags)) }

// DirtyLimit is how many bytes programs may have written that the host kernel has not sent us; 0 if it is not known to be
// bounded for this mount alone.
func (s *Server) DirtyLimit() uint64 { return s.fs.dirtyLimit.Load() }

// initFailed reports whether NewServer failed after it had mounted: go-fuse leaves the dead mount behind then.
func (f *fileSystem) initFailed(err error) bool { return strings.HasPrefix(err.Error(), "init: ") }

// fileSystem is what a mount consists of. It is the fuse.RawFileSystem.
type fileSystem struct {
	fuse.RawFileSystem // answers ENOSYS to what we do not have

	opts    Options
	sys     *mm.System
	server  *fuse.Server // for notifications; nil when there is no kernel, as in tests
	control *controlTree
	root    *node
	hidden  *node // .proc as a directory of real nodes, which has nothing but sections
	// sections is .proc/sections: the files of named sections.
	sections *node

	nodes   nodeTable
	handles handleTable
	owners  ownerTable
	times   times
	pace    *pace
	notices notices
	inodes  atomic.Uint64 // nodes that exist
	most    atomic.Uint64 // nodes that may exist
	planned bool          // most goes by the memory

	resizing sync.Mutex // a leaf lock; held while the device is told its bound, which no request waits for

	launderer  atomic.Pointer[Launderer]
	gate       ctl.Gate // for commands and control files that wait for a write-back
	seeks      ctl.Gate // for LSEEKs that do
	deletions  deletions
	dirtyLimit atomic.Uint64
	device     atomic.Pointer[bdi] // of the mount; nil if it is not known
	mountFlags atomic.Uint64       // MS_… bits; a remount changes them

	// tree guards the names: every directory's entries, and every node's entry.
	tree sync.RWMutex
}

func newFileSystem(o Options) (*fileSystem, error) {
	if o.ProcName == "" {
		o.ProcName = ".proc"
	}
	if o.MaxRequest == 0 {
		o.MaxRequest = defaultRequest
	}
	if o.Source == "" {
		o.Source = "memfs"
	}
	if o.Log == nil {
		o.Log = func(string, ...any) {}
	}
	f := &fileSystem{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		opts:          o,
		sys:           o.System,
		gate:          make(ctl.Gate, gateWidth(o)),
		seeks:         make(ctl.Gate, maxSeeks),
	}
	f.nodes.init()
	f.handles.init()
	f.owners.init()
	planned := o.System.Budget().Inodes
	f.planned = o.Inodes == 0 || o.Inodes == planned
	f.most.Store(o.Inodes)
	if f.planned {
		f.most.Store(planned)
	}
	f.mountFlags.Store(uint64(o.Flags))
	f.setLaunderer(o.Launderer)
	root, st := f.newNode(seed{mode: syscall.S_IFDIR | o.Mode&permMask, uid: o.UID, gid: o.GID})
	if !st.Ok() {
		return nil, fmt.Errorf("no memory for the root: %w", syscall.Errno(st))
	}
	root.mu.Lock()
	root.refs.lookups = 1 // the kernel never forgets it
	root.mu.Unlock()
	f.root = root
	if err := f.makeSections(); err != nil {
		return nil, err
	}
	f.control = newControlTree(f)
	if err := f.notices.open(); err != nil {
		return nil, err
	}
	return f, nil
}

// gateWidth is how many handlers may wait for a write-back at once: half of the requests there can be, since the WRITEs
// that they wait for are requests as well.
func gateWidth(o Options) int {
	const overhead = 8 << 10 // what go-fuse counts for a request beyond its largest payload
	if o.MaxInflight == 0 {
		return maxBackground / 2
	}
	return max(1, o.MaxInflight/(o.MaxRequest+overhead)/2)
}

func (f *fileSystem) mountOptions() *fuse.MountOptions {
	o := &fuse.MountOptions{
		Name:                     "memfs",
		FsName:                   f.opts.Source,
		Options:                  []string{"default_permissions"},
		AllowOther:               f.opts.AllowOther,
		MaxWrite:                 f.opts.MaxRequest,
		MaxReadAhead:             f.opts.MaxRequest,
		MaxBackground:            maxBackground,
		MaxInflightRequestBytes:  f.opts.MaxInflight,
		ExplicitDataCacheControl: true,
		EnableAcl:                true,
		DisableSplice:            true, // no answer comes from a file: to try costs four calls for each that is not of frames
		// HANDLE_KILLPRIV_V2 saves a getxattr before every write; SETXATTR_EXT says when an ACL takes setgid away.
		ExtraCapabilities: fuse.CAP_WRITEBACK_CACHE | fuse.CAP_HANDLE_KILLPRIV_V2 | fuse.CAP_DONT_MASK |
			fuse.CAP_EXPORT_SUPPORT | fuse.CAP_DIRECT_IO_ALLOW_MMAP | fuse.CAP_READDIRPLUS_AUTO | fuse.CAP_ASYNC_DIO |
			fuse.CAP_PARALLEL_DIROPS | fuse.CAP_SETXATTR_EXT,
		PanicHandler: f.panicked,
		Logger:       log.New(logWriter(f.opts.Log), "", 0),
	}
	if !f.opts.DirectMount {
		o.Options = append(o.Options, helperWords(f.opts.Flags)...)
		return o
	}
	o.DirectMountStrict = true
	o.DirectMountFlags = f.opts.Flags
	if o.DirectMountFlags == 0 {
		o.DirectMountFlags = syscall.MS_MGC_VAL // no flags; 0 would mean nosuid,nodev
	}
	return o
}

// helperWords are the flags that fusermount3 knows, in its words. A user's mount is nosuid and nodev without being told;
// relatime is the kernel's default, and strictatime and nodiratime, which it has no words for, are kept by us.
func helperWords(flags uintptr) (words []string) {
	for _, w := range []struct {
		flag uintptr
		word string
	}{
		{unix.MS_RDONLY, "ro"}, {unix.MS_NOEXEC, "noexec"}, {unix.MS_NOATIME, "noatime"},
		{unix.MS_SYNCHRONOUS, "sync"}, {unix.MS_DIRSYNC, "dirsync"},
	} {
		if flags&w.flag != 0 {
			words = append(words, w.word)
		}
	}
	return words
}

// panicked ends the daemon: a bug must not turn into an EIO that nobody looks at.
func (f *fileSystem) panicked(value any) fuse.Status {
	if f.opts.Fatal == nil {
		panic(value)
	}
	f.opts.Fatal(value, debug.Stack())
	return fuse.EIO
}

// logWriter hands lines of go-fuse's log on.
type logWriter func(string, ...any)

func (w logWriter) Write(p []byte) (int, error) {
	w("%s", strings.TrimRight(string(p), "\n"))
	return len(p), nil
}

// String is the name of the file system.
func (f *fileSystem) String() string { return "memfs" }

// Init is called once, before the first request.
func (f *fileSystem) Init(s *fuse.Server) { f.server = s }

func (f *fileSystem) setLaunderer(l Launderer) {
	if l != nil {
		f.launderer.Store(&l)
	}
}

func (f *fileSystem) rootNode() *node { return f.root }

// inodeCounts is how many nodes there are, and how many there may be.
func (f *fileSystem) inodeCounts() (used, most uint64) { return f.inodes.Load(), f.most.Load() }

// resized follows a change of the memory. Whoever comes last brings the newest figures.
func (f *fileSystem) resized() {
	planned := f.planned
	f.resizing.Lock()
	defer f.resizing.Unlock()
	b := f.sys.Budget()
	if planned {
		f.most.Store(b.Inodes)
	}
	f.boundDirty(b.HostDirty)
}

// shutdown gives everything back. No request is under way any more.
func (f *fileSystem) shutdown() {
	if l := f.launderer.Load(); l != nil {
		if err := (*l).Close(); err != nil {
			f.opts.Log("launderer: %v", err)
		}
	}
	f.notices.close()
	f.control.processes.close()
	f.nodes.each(func(n *node) { n.abandon() })
	f.deletions.wait()
}

func (f *fileSystem) statFs(out *fuse.StatfsOut) {
	s := f.sys.Snapshot()
	used, most := f.inodeCounts()
	total, free := s.CommitLimit, s.CommitLimit-min(s.Commit, s.CommitLimit)
	if size := (s.Budget.Size + mm.PageSize - 1) / mm.PageSize; size > 0 {
		total, free = min(total, size), min(free, size-min(s.FileCommit, size))
	}
	*out = fuse.StatfsOut{
		Blocks:  total,
		Bfree:   free,
		Files:   most,
		Ffree:   most - min(used, most),
		Bsize:   mm.PageSize,
		Frsize:  mm.PageSize,
		NameLen: maxNameLen,
	}
	out.Bavail = out.Bfree
}

// realPath is a path as /proc/self/mountinfo shows it.
func realPath(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(abs)
}

// closeOnExec keeps our descriptors of a device from our children. go-fuse leaves it out for a direct mount, and a child
// that holds /dev/fuse keeps the connection of a dead daemon alive: every program on the mount would hang.
func closeOnExec(device string) {
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return
	}
	for _, e := range fds {
		var fd int
		if _, err := fmt.Sscan(e.Name(), &fd); err != nil {
			continue
		}
		if target, _ := os.Readlink("/proc/self/fd/" + e.Name()); target == device {
			unix.CloseOnExec(fd)
		}
	}
}
