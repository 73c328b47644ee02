package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime/debug"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"memfs/fs"
)

// The launderer is a child process of the daemon that has the host kernel write back what programs have written to a
// file, in large requests. The daemon cannot: it must never open a file of its own mount, for the request would wait for
// itself. The child opens the file by its handle, or, where it has not the right to, by its path; calls sync_file_range,
// answers, and closes it. It holds nothing at rest, so that the mount can be unmounted, and it ends when the socket to the
// daemon closes.
//
// Requests and replies are messages on a sequenced-packet socket, in this machine's byte order:
//
//	request  id, node, what, offset, length, path   u64 u64 u64 i64 i64; length < 0: to the end; 0: only open it;
//	                                                path from the root of the mount, empty: by handle
//	reply    id, errno                              u64 u64; 0: done
//
// It also sets the sizes of files on behalf of simulated processes, because the host kernel owns them: what is 1 for that, 2 to
// make a file at least so long, offset the size.

const (
	requestSize = 40 // without the path
	replySize   = 16
)

type launderRequest struct {
	id, node uint64
	what     launderWhat
	off, n   int64
	path     string
}

type launderWhat uint64

const (
	launderWriteBack launderWhat = iota
	launderTruncate
	launderExtend
)

func (r launderRequest) encode() []byte {
	b := make([]byte, requestSize)
	binary.NativeEndian.PutUint64(b[0:], r.id)
	binary.NativeEndian.PutUint64(b[8:], r.node)
	binary.NativeEndian.PutUint64(b[16:], uint64(r.what))
	binary.NativeEndian.PutUint64(b[24:], uint64(r.off))
	binary.NativeEndian.PutUint64(b[32:], uint64(r.n))
	return append(b, r.path...)
}

func decodeRequest(b []byte) (r launderRequest, err error) {
	if len(b) < requestSize || len(b) > requestSize+unix.PathMax {
		return r, fmt.Errorf("a request of %d bytes", len(b))
	}
	r.id = binary.NativeEndian.Uint64(b[0:])
	r.node = binary.NativeEndian.Uint64(b[8:])
	r.what = launderWhat(binary.NativeEndian.Uint64(b[16:]))
	r.off = int64(binary.NativeEndian.Uint64(b[24:]))
	r.n = int64(binary.NativeEndian.Uint64(b[32:]))
	r.path = string(b[requestSize:])
	return r, nil
}

type launderReply struct {
	id    uint64
	errno unix.Errno
}

func (r launderReply) encode() []byte {
	b := make([]byte, replySize)
	binary.NativeEndian.PutUint64(b[0:], r.id)
	binary.NativeEndian.PutUint64(b[8:], uint64(r.errno))
	return b
}

func decodeReply(b []byte) (r launderReply, err error) {
	if len(b) != replySize {
		return r, fmt.Errorf("a reply of %d bytes", len(b))
	}
	r.id = binary.NativeEndian.Uint64(b[0:])
	r.errno = unix.Errno(binary.NativeEndian.Uint64(b[8:]))
	return r, nil
}

// # The child

const (
	launderWorkers = 4
	// A close has the kernel write the whole file back, and waits for that and for the inode lock, which a program may
	// hold for long. So many may wait beside the workers, of one file and in all; beyond, the answer is EBUSY at once.
	launderClosers     = 32
	launderFileClosers = 2
)

// closers are the files whose close is under way.
type closers struct {
	mu sync.Mutex
	// +checklocks:mu
	all int
	// +checklocks:mu
	files map[uint64]int // by node
}

// enter takes a place for the close of a file that is about to be opened; false if there is none.
func (c *closers) enter(node uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all >= launderClosers || c.files[node] >= launderFileClosers {
		return false
	}
	c.all++
	c.files[node]++
	return true
}

func (c *closers) leave(node uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all--
	if c.files[node]--; c.files[node] == 0 {
		delete(c.files, node)
	}
}

// launderFile is an open file of the mount.
type launderFile interface {
	writeBack(off, n int64) error
	truncate(size int64) error
	extend(size int64) error
	Close() error
}

// opener opens the file of the mount that a request is about.
type opener func(r launderRequest, write bool) (launderFile, error)

// launderLoop answers requests until the daemon has gone.
func launderLoop(conn io.ReadWriter, open opener) error {
	c := closers{files: make(map[uint64]int)}
	work := func() error {
		buf := make([]byte, requestSize+unix.PathMax+1)
		for {
			n, err := conn.Read(buf)
			if n == 0 || err != nil {
				if err == io.EOF {
					err = nil
				}
				return err
			}
			r, err := decodeRequest(buf[:n])
			if err != nil {
				return err
			}
			if err := launder(conn, r, &c, open); err != nil {
				return err
			}
		}
	}
	errs := make(chan error, launderWorkers)
	for range launderWorkers {
		go func() { errs <- work() }()
	}
	// The others may hang in the mount, and there is nobody to answer to.
	return <-errs
}

// launder does one request. The error is the connection's.
func launder(conn io.Writer, r launderRequest, c *closers, open opener) error {
	answer := func(err error) error {
		_, err = conn.Write(launderReply{r.id, errnoOf(err)}.encode())
		return err
	}
	if !c.enter(r.node) {
		return answer(unix.EBUSY)
	}
	file, err := open(r, r.what != launderWriteBack)
	if err != nil {
		c.leave(r.node)
		return answer(err)
	}
	if r.what == launderWriteBack && r.n == 0 {
		// Nothing was written back and nobody holds a lock; and what is still open keeps the mount busy.
		file.Close()
		c.leave(r.node)
		return answer(nil)
	}
	switch r.what {
	case launderTruncate:
		err = file.truncate(r.off)
	case launderExtend:
		err = file.extend(r.off)
	default:
		err = file.writeBack(r.off, r.n)
	}
	// The answer comes before the close: whoever waits for it may wait with the inode lock held.
	err = answer(err)
	go func() {
		file.Close()
		c.leave(r.node)
	}()
	return err
}

func errnoOf(err error) unix.Errno {
	var errno unix.Errno
	switch {
	case err == nil:
		return 0
	case errors.As(err, &errno):
		return errno
	}
	return unix.EIO
}

// mountRef opens files of a mount by node id.
type mountRef struct {
	dir    string
	device string // major:minor
}

const (
	rootNode = 1
	// fuseHandle is FILEID_INO64_GEN, the type of a FUSE file handle: node id, high and low, and generation, which is 0
	// for every node of ours, since no id is used twice.
	fuseHandle = 0x81
)

func (m mountRef) open(r launderRequest, write bool) (launderFile, error) {
	// Opened for each file anew, because an open directory keeps the mount busy. O_PATH would do no request, but the
	// kernel does not take it here.
	mount, err := openRetry(func() (int, error) {
		return unix.Open(m.dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	})
	if err != nil {
		return nil, err
	}
	defer unix.Close(mount)
	var st unix.Statx_t
	if err := unix.Statx(mount, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, 0, &st); err != nil {
		return nil, err
	}
	if fmt.Sprintf("%d:%d", st.Dev_major, st.Dev_minor) != m.device {
		return nil, unix.EXDEV // something else is mounted over it, or it is gone
	}
	flags := unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY
	switch {
	case write:
		flags |= unix.O_RDWR
	case r.node == rootNode:
		flags |= unix.O_DIRECTORY
	}
	if r.path != "" {
		return openPath(mount, r, flags)
	}
	var id [12]byte
	binary.NativeEndian.PutUint32(id[0:], uint32(r.node>>32))
	binary.NativeEndian.PutUint32(id[4:], uint32(r.node))
	fd, err := openRetry(func() (int, error) {
		return unix.OpenByHandleAt(mount, unix.NewFileHandle(fuseHandle, id[:]), flags)
	})
	if err != nil {
		return nil, err
	}
	return openFile(fd), nil
}

// openPath opens a file by its path in the mount. EBUSY: it has another one meanwhile, and is to be asked for again.
func openPath(mount int, r launderRequest, flags int) (launderFile, error) {
	how := unix.OpenHow{Flags: uint64(flags | unix.O_NOFOLLOW), Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV}
	fd, err := openRetry(func() (int, error) { return unix.Openat2(mount, r.path, &how) })
	if err == unix.ENOENT || err == unix.ENOTDIR || err == unix.EAGAIN || err == unix.ELOOP {
		return nil, unix.EBUSY
	}
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Ino != r.node {
		unix.Close(fd)
		return nil, unix.EBUSY
	}
	return openFile(fd), nil
}

func openRetry(f func() (int, error)) (int, error) {
	for {
		if fd, err := f(); err != unix.EINTR {
			return fd, err
		}
	}
}

type openFile int

func (f openFile) Close() error { return unix.Close(int(f)) }

func (f openFile) writeBack(off, n int64) error {
	if n < 0 {
		n = 0 // to the end, as sync_file_range has it
	}
	const all = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
	for {
		if err := unix.SyncFileRange(int(f), off, n, all); err != unix.EINTR {
			return err
		}
	}
}

func (f openFile) truncate(size int64) error {
	for {
		if err := unix.Ftruncate(int(f), size); err != unix.EINTR {
			return err
		}
	}
}

// extend makes the file at least size bytes long: fallocate(2), unlike ftruncate(2), makes none shorter that a program has made
// longer meanwhile.
func (f openFile) extend(size int64) error {
	for {
		if err := unix.Fallocate(int(f), 0, size-1, 1); err != unix.EINTR {
			return err
		}
	}
}

// launderFD is the number of the child's socket.
const launderFD = 3

func newLaunderCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "launder MOUNTPOINT DEVICE",
		Short:  "Write files of a mount back on its daemon's behalf (used by memfs itself)",
		Hidden: true,
		Args:   cobra.ExactArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			debug.SetGCPercent(20)
			debug.SetMemoryLimit(8 << 20)
			unix.CloseOnExec(launderFD)
			if err := unix.SetNonblock(launderFD, true); err != nil {
				return fmt.Errorf("launder: no socket to a daemon: %w", err)
			}
			conn := os.NewFile(launderFD, "socket")
			debug.FreeOSMemory()
			return launderLoop(conn, mountRef{dir: args[0], device: args[1]}.open)
		},
	}
}

// # The daemon's side

const (
	// A range of a file is written back in milliseconds. These are for the page file on a disk that is in trouble.
	launderTimeout     = 5 * time.Second
	launderTimeoutFile = 30 * time.Second // of a whole file
	launderLargeRange  = 4 << 20
	// launderPause is how long after one child another one may be started: a child that keeps dying is of no use.
	launderPause = 2 * time.Second
	// launderUndead is how many children that were killed may still hang in the kernel before no more are started.
	launderUndead = 4
)

var (
	errNoPath       = fmt.Errorf("launderer: the file has no path, or too long a one, and may not be opened without: %w", unix.ENXIO)
	errNoChild      = errors.New("launderer: no child process")
	errChildEnded   = errors.New("launderer: the child process ended")
	errChildTimeout = errors.New("launderer: the child process did not answer in time")
)

// launderer is the daemon's side: it keeps a child running.
type launderer struct {
	warn func(string, ...any)
	path func(node uint64) string // of a file, empty if it has none; nil: the child opens files by handle

	mu sync.Mutex
	// +checklocks:mu
	start func() (*launderChild, error)
	// +checklocks:mu
	child *launderChild // nil: none
	// +checklocks:mu
	notBefore time.Time // when the next one may be started
	// +checklocks:mu
	killed []*launderChild // those that may not have ended yet
	// +checklocks:mu
	closed bool
}

var _ fs.Launderer = (*launderer)(nil)

// startLaunderer starts a child for the mount on place and sees whether it can do its work. path finds the path of a file, for
// where it may not open files by handle.
func startLaunderer(place, device string, path func(node uint64) string, warn func(string, ...any)) (*launderer, error) {
	l := &launderer{
		start: func() (*launderChild, error) { return startLaunderChild(place, device) },
		warn:  warn,
	}
	// The capability must be one over the whole machine in older kernels, so having it says nothing; not having it does.
	var err error = unix.EPERM
	if hasCapability(unix.CAP_DAC_READ_SEARCH) {
		err = l.do(launderRequest{node: rootNode}, launderTimeout)
	}
	if err != nil {
		l.path = path
		err = l.do(launderRequest{node: rootNode}, launderTimeout)
	}
	if err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// WriteBack writes a range of a file back; see fs.Launderer.
func (l *launderer) WriteBack(node uint64, off, n int64) error {
	if n == 0 {
		return nil
	}
	timeout := launderTimeout
	if n < 0 || n > launderLargeRange {
		timeout = launderTimeoutFile
	}
	err := l.do(launderRequest{node: node, off: off, n: n}, timeout)
	if err == unix.ESTALE || err == unix.ENOENT {
		return nil // nothing of it is cached
	}
	return err
}

// Truncate sets the size of a file; see fs.Launderer.
func (l *launderer) Truncate(node uint64, size int64) error {
	return l.do(launderRequest{node: node, what: launderTruncate, off: size}, launderTimeoutFile)
}

// Extend makes a file at least size bytes long; see fs.Launderer.
func (l *launderer) Extend(node uint64, size int64) error {
	return l.do(launderRequest{node: node, what: launderExtend, off: size}, launderTimeoutFile)
}

// do has a child carry one request out. A child that has ended is replaced: the request can be made again.
func (l *launderer) do(r launderRequest, timeout time.Duration) error {
	if l.path != nil {
		if r.path = l.path(r.node); r.path == "" || len(r.path) > unix.PathMax {
			return errNoPath
		}
	}
	for {
		child, err := l.current()
		if err != nil {
			return err
		}
		err = child.request(r, timeout)
		switch err {
		case errChildEnded:
			l.lost(child, err)
			continue
		case errChildTimeout:
			// It hangs in the mount, or the page file's disk is in trouble. Nothing else may be had of it.
			child.kill()
			l.lost(child, err)
		}
		return err
	}
}

// current is the running child; one is started if there is none.
func (l *launderer) current() (*launderChild, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.child != nil {
		return l.child, nil
	}
	l.killed = slices.DeleteFunc(l.killed, (*launderChild).hasGone)
	now := time.Now()
	if l.closed || now.Before(l.notBefore) || len(l.killed) >= launderUndead {
		return nil, errNoChild
	}
	l.notBefore = now.Add(launderPause)
	child, err := l.start()
	if err != nil {
		return nil, fmt.Errorf("launderer: %w", err)
	}
	l.child = child
	return child, nil
}

// lost takes note that a child is of no use any more.
func (l *launderer) lost(child *launderChild, err error) {
	l.mu.Lock()
	first := l.child == child && !l.closed
	if l.child == child {
		l.child = nil
		l.killed = append(l.killed, child)
	}
	l.mu.Unlock()
	if first {
		child.conn.Close()
		l.warn("%v; another one is started, or plain invalidation serves", err)
	}
}

// Close ends the child and waits until it is gone, as long as it does not hang.
func (l *launderer) Close() error {
	l.mu.Lock()
	child := l.child
	l.child, l.closed = nil, true
	l.mu.Unlock()
	if child == nil {
		return nil
	}
	return child.stop()
}

// launderChild is one child process, seen from the daemon.
type launderChild struct {
	conn io.ReadWriteCloser
	kill func()        // ends it by force
	gone chan struct{} // closed when the process has ended

	mu sync.Mutex
	// +checklocks:mu
	pending map[uint64]chan error
	// +checklocks:mu
	last uint64
	// +checklocks:mu
	ended bool
}

func startLaunderChild(place, device string) (*launderChild, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socketpair: %w", err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "socket")
	defer theirs.Close()
	if err := unix.SetNonblock(pair[0], true); err != nil {
		unix.Close(pair[0])
		return nil, err
	}
	ours := os.NewFile(uintptr(pair[0]), "socket")
	command := exec.Command(selfExe, "launder", place, device)
	command.Args[0] = "memfs"
	command.ExtraFiles = []*os.File{theirs} // becomes launderFD
	command.SysProcAttr = &syscall.SysProcAttr{
		Setpgid:   true, // Ctrl-C is for the daemon
		Pdeathsig: syscall.SIGKILL,
	}
	if err := command.Start(); err != nil {
		ours.Close()
		return nil, fmt.Errorf("start: %s", reason(err))
	}
	c := newLaunderChild(ours, func() { command.Process.Kill() })
	go func() {
		command.Wait()
		close(c.gone)
	}()
	return c, nil
}

func newLaunderChild(conn io.ReadWriteCloser, kill func()) *launderChild {
	c := &launderChild{conn: conn, kill: kill, gone: make(chan struct{}), pending: map[uint64]chan error{}}
	go c.receive()
	return c
}

// receive hands replies out until the child has ended.
func (c *launderChild) receive() {
	buf := make([]byte, replySize+1)
	for {
		n, err := c.conn.Read(buf)
		if err != nil || n == 0 {
			break
		}
		reply, err := decodeReply(buf[:n])
		if err != nil {
			break
		}
		c.mu.Lock()
		waiter := c.pending[reply.id]
		delete(c.pending, reply.id)
		c.mu.Unlock()
		if waiter == nil {
			continue // it gave up
		}
		if reply.errno != 0 {
			waiter <- reply.errno
		} else {
			waiter <- nil
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	for _, waiter := range c.pending {
		waiter <- errChildEnded
	}
	clear(c.pending)
}

// request sends one request and waits for its answer.
func (c *launderChild) request(r launderRequest, timeout time.Duration) error {
	waiter := make(chan error, 1)
	c.mu.Lock()
	if c.ended {
		c.mu.Unlock()
		return errChildEnded
	}
	c.last++
	id := c.last
	r.id = id
	c.pending[id] = waiter
	c.mu.Unlock()

	timer := time.NewTimer(timeout)
	defer timer.Stop()
	// A child that hangs reads nothing, and a full socket would hang us as well.
	if d, ok := c.conn.(interface{ SetWriteDeadline(time.Time) error }); ok {
		d.SetWriteDeadline(time.Now().Add(timeout))
	}
	if _, err := c.conn.Write(r.encode()); err != nil {
		c.forget(id)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return errChildTimeout
		}
		return errChildEnded
	}
	select {
	case err := <-waiter:
		return err
	case <-timer.C:
		c.forget(id)
		return errChildTimeout
	}
}

func (c *launderChild) forget(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pending, id)
}

// hasGone reports whether the process has ended.
func (c *launderChild) hasGone() bool {
	select {
	case <-c.gone:
		return true
	default:
		return false
	}
}

// stop ends the child the gentle way, and by force if that takes longer than it should.
func (c *launderChild) stop() error {
	c.conn.Close()
	const patience = 2 * time.Second
	select {
	case <-c.gone:
		return nil
	case <-time.After(patience):
	}
	c.kill()
	select {
	case <-c.gone:
		return nil
	case <-time.After(patience):
		return errors.New("launderer: the child process cannot be ended")
	}
}
