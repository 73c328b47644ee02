package main

import (
	"errors"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestLaunderMessages(t *testing.T) {
	r := launderRequest{id: 1<<63 + 5, node: 1<<40 + 7, what: launderTruncate, off: 1 << 50, n: -1, path: "/a/b"}
	if got, err := decodeRequest(r.encode()); err != nil || got != r {
		t.Errorf("%+v, %v", got, err)
	}
	a := launderReply{id: 1<<63 + 5, errno: unix.EDQUOT}
	if got, err := decodeReply(a.encode()); err != nil || got != a {
		t.Errorf("%+v, %v", got, err)
	}
	for _, n := range []int{0, 1, requestSize - 1, requestSize + unix.PathMax + 1} {
		if _, err := decodeRequest(make([]byte, n)); err == nil {
			t.Errorf("a request of %d bytes was taken", n)
		}
	}
	for _, n := range []int{0, 1, replySize - 1, replySize + 1} {
		if _, err := decodeReply(make([]byte, n)); err == nil {
			t.Errorf("a reply of %d bytes was taken", n)
		}
	}
}

// fakeMount is the mount that a launderLoop under test opens files of.
type fakeMount struct {
	mu sync.Mutex
	// +checklocks:mu
	ranges [][2]int64
	// +checklocks:mu
	sizes []int64

	open   atomic.Int64  // files open now
	stuck  chan struct{} // node 99 waits for it
	closes chan struct{} // if not nil, a close waits for it
}

type fakeFile struct {
	m     *fakeMount
	write bool
}

func (m *fakeMount) openFile(r launderRequest, write bool) (launderFile, error) {
	switch r.node {
	case 50:
		return nil, unix.ESTALE
	case 51:
		return nil, errors.New("no errno")
	case 52:
		return nil, unix.EPERM
	case 99:
		<-m.stuck
	}
	m.open.Add(1)
	return fakeFile{m, write}, nil
}

func (f fakeFile) writeBack(off, n int64) error {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	f.m.ranges = append(f.m.ranges, [2]int64{off, n})
	if off == 666 {
		return unix.EIO
	}
	return nil
}

func (f fakeFile) truncate(size int64) error {
	if !f.write {
		return unix.EINVAL // as ftruncate(2) of a descriptor that cannot write
	}
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	f.m.sizes = append(f.m.sizes, size)
	return nil
}

func (f fakeFile) extend(size int64) error { return f.truncate(-size) }

func (f fakeFile) Close() error {
	if f.m.closes != nil {
		<-f.m.closes
	}
	f.m.open.Add(-1)
	return nil
}

// newTestLaunderer is a launderer whose children are goroutines of this process.
func newTestLaunderer(t *testing.T, m *fakeMount) (l *launderer, started *atomic.Int64) {
	started = new(atomic.Int64)
	m.stuck = make(chan struct{})
	l = &launderer{warn: t.Logf, start: func() (*launderChild, error) {
		started.Add(1)
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		theirs, ours := os.NewFile(uintptr(pair[0]), "theirs"), os.NewFile(uintptr(pair[1]), "ours")
		child := newLaunderChild(ours, func() { theirs.Close() })
		go func() {
			launderLoop(theirs, m.openFile)
			theirs.Close()
			close(child.gone)
		}()
		return child, nil
	}}
	t.Cleanup(func() {
		close(m.stuck)
		if err := l.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		if err := l.Close(); err != nil {
			t.Errorf("second close: %v", err)
		}
	})
	return l, started
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for range 500 {
		if f() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal(what)
}

func TestLaunderer(t *testing.T) {
	m := &fakeMount{}
	l, started := newTestLaunderer(t, m)
	if err := l.WriteBack(7, 0, 0); err != nil || started.Load() != 0 {
		t.Errorf("nothing to do: %v, %d children", err, started.Load())
	}
	if err := l.WriteBack(7, 4096, 8192); err != nil {
		t.Error(err)
	}
	if err := l.WriteBack(8, 0, -1); err != nil {
		t.Error(err)
	}
	if err := l.WriteBack(50, 0, -1); err != nil {
		t.Errorf("a file that the host has forgotten: %v", err)
	}
	if err := l.WriteBack(51, 0, -1); err != unix.EIO {
		t.Errorf("an error that is no errno: %v", err)
	}
	if err := l.WriteBack(52, 0, -1); err != unix.EPERM {
		t.Errorf("not permitted: %v", err)
	}
	if err := l.WriteBack(9, 666, 1); err != unix.EIO {
		t.Errorf("a failed write-back: %v", err)
	}
	if err := l.do(launderRequest{node: rootNode}, time.Second); err != nil {
		t.Errorf("probe: %v", err)
	}
	for _, size := range []int64{0, 1 << 40} {
		if err := l.Truncate(7, size); err != nil {
			t.Errorf("a size of %d: %v", size, err)
		}
	}
	if err := l.Truncate(50, 0); err != unix.ESTALE {
		t.Errorf("the size of a file that is gone: %v", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if want := [][2]int64{{4096, 8192}, {0, -1}, {666, 1}}; !slices.Equal(m.ranges, want) {
		t.Errorf("ranges %v, want %v", m.ranges, want)
	}
	if want := []int64{0, 1 << 40}; !slices.Equal(m.sizes, want) {
		t.Errorf("sizes %v, want %v", m.sizes, want)
	}
	eventually(t, "files are kept open", func() bool { return m.open.Load() == 0 })
	if started.Load() != 1 {
		t.Errorf("%d children", started.Load())
	}
}

// The answer must not wait for the close, which waits for the inode lock of whoever asks.
func TestLaunderAnswersBeforeClosing(t *testing.T) {
	m := &fakeMount{closes: make(chan struct{})}
	l, _ := newTestLaunderer(t, m)
	const files = 2 * launderWorkers
	for node := range uint64(files) {
		if err := l.WriteBack(node+2, 0, 4096); err != nil {
			t.Fatal(err)
		}
	}
	if n := m.open.Load(); n != files {
		t.Errorf("%d files are open, want %d", n, files)
	}
	close(m.closes)
	eventually(t, "files are kept open", func() bool { return m.open.Load() == 0 })
}

// A file whose closes hang must not take the launderer away from the others.
func TestLaunderBusy(t *testing.T) {
	m := &fakeMount{closes: make(chan struct{})}
	l, _ := newTestLaunderer(t, m)
	for range launderFileClosers {
		if err := l.WriteBack(2, 0, 4096); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.WriteBack(2, 0, 4096); err != unix.EBUSY {
		t.Errorf("with %d closes of the file under way: %v, want EBUSY", launderFileClosers, err)
	}
	if err := l.WriteBack(3, 0, 4096); err != nil {
		t.Errorf("another file: %v", err)
	}
	close(m.closes)
	eventually(t, "files are kept open", func() bool { return m.open.Load() == 0 })
	eventually(t, "the file stays busy", func() bool { return l.WriteBack(2, 0, 4096) == nil })
}

func TestLaundererConcurrent(t *testing.T) {
	m := &fakeMount{}
	l, started := newTestLaunderer(t, m)
	var wg sync.WaitGroup
	for g := range int64(8) {
		wg.Go(func() {
			for i := range int64(50) {
				want, off := error(nil), g*1000+i
				if off == 666 || i == 49 {
					want, off = unix.EIO, 666
				}
				err := l.WriteBack(2, off, 1)
				for err == unix.EBUSY { // closes of the same file are under way
					time.Sleep(time.Millisecond)
					err = l.WriteBack(2, off, 1)
				}
				if err != want {
					t.Errorf("%v, want %v", err, want)
				}
			}
		})
	}
	wg.Wait()
	if started.Load() != 1 {
		t.Errorf("%d children", started.Load())
	}
}

// A child that hangs is an error after a while, and another one does the rest.
func TestLaundererTimeout(t *testing.T) {
	m := &fakeMount{}
	l, started := newTestLaunderer(t, m)
	l.WriteBack(2, 0, 1)
	start := time.Now()
	if err := l.do(launderRequest{node: 99, n: 1}, 50*time.Millisecond); err != errChildTimeout {
		t.Errorf("a hang: %v", err)
	}
	if d := time.Since(start); d > 2*time.Second {
		t.Errorf("a hang took %v", d)
	}
	if err := l.WriteBack(2, 0, 1); err != errNoChild {
		t.Errorf("right after it: %v", err)
	}
	l.mu.Lock()
	l.notBefore = time.Time{}
	l.mu.Unlock()
	if err := l.WriteBack(2, 0, 1); err != nil || started.Load() != 2 {
		t.Errorf("after the pause: %v, %d children", err, started.Load())
	}
}

// A child that dies is replaced, and what it was asked is asked again.
func TestLaundererRestart(t *testing.T) {
	m := &fakeMount{}
	l, started := newTestLaunderer(t, m)
	l.WriteBack(2, 0, 1)
	l.mu.Lock()
	l.notBefore = time.Time{}
	child := l.child
	l.mu.Unlock()
	child.kill()
	<-child.gone
	if err := l.WriteBack(3, 0, 1); err != nil || started.Load() != 2 {
		t.Errorf("%v, %d children", err, started.Load())
	}
	// One that dies again at once is not replaced for a while.
	l.mu.Lock()
	child = l.child
	l.mu.Unlock()
	child.kill()
	<-child.gone
	if err := l.WriteBack(3, 0, 1); err != errNoChild {
		t.Errorf("%v", err)
	}
}

func TestLaunderLoopEnds(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs, ours := os.NewFile(uintptr(pair[0]), "theirs"), os.NewFile(uintptr(pair[1]), "ours")
	defer theirs.Close()
	ended := make(chan error, 1)
	go func() { ended <- launderLoop(theirs, (&fakeMount{}).openFile) }()
	if _, err := ours.Write([]byte("nonsense")); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err == nil {
			t.Error("nonsense was taken")
		}
	case <-time.After(5 * time.Second):
		t.Fatal("goes on after nonsense")
	}
	ours.Close()

	// And it ends without an error when the daemon does.
	pair, err = unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	other := os.NewFile(uintptr(pair[0]), "theirs")
	defer other.Close()
	go func() { ended <- launderLoop(other, (&fakeMount{}).openFile) }()
	unix.Close(pair[1])
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("goes on without a daemon")
	}
}
