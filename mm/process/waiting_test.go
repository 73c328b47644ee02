package process

import (
	"errors"
	"sync"
	"testing"
	"time"

	"memfs/mm"
)

// slowHost is the host kernel's cache of a file that a program has open for writing: whoever invalidates it waits until told
// otherwise.
type slowHost struct {
	entered chan struct{} // gets a token for everyone who has begun to wait
	end     chan struct{} // closed: nobody waits any more
}

func (h *slowHost) Invalidate(off, n int64) error {
	select {
	case <-h.end:
		return nil
	default:
	}
	h.entered <- struct{}{}
	<-h.end
	return nil
}
func (h *slowHost) WriteBack(off, n int64) error { return nil }
func (h *slowHost) Written() bool                { return true }

// slowFiles has one file, on a slow host.
type slowFiles struct {
	noFiles
	file *looseFile
}

type slowFile struct{ *looseFile }

func (f slowFile) SetSize(n int64) error { f.size = n; return nil }
func (f slowFile) Extend(n int64) error  { f.size = max(f.size, n); return nil }

func (s *slowFiles) Open(*Process, string, uint32, Disposition) (File, bool, error) {
	return slowFile{s.file}, true, nil
}

// waitingMachine is a machine with a process that has, one after the other, private memory at border - 2 pages and a view of
// two pages of a file whose host is slow at border.
func waitingMachine(t *testing.T) (m *machine, file Handle, h *slowHost) {
	m = newMachine(t, 256, 256, Image{})
	h = &slowHost{make(chan struct{}, 1000), make(chan struct{})}
	f := &looseFile{seg: m.sys.NewSegment(h), size: 2 * PageSize}
	m.SetFiles(&slowFiles{noFiles{m.sys}, f})
	file, _, err := m.OpenFile(FileRequest{Path: "/f", Access: GenericRead | GenericWrite, Share: ShareAll, Disposition: OpenExisting})
	if err != nil {
		t.Fatal(err)
	}
	s, _, err := m.CreateSection(file, uint32(ReadWrite), 0, "", false)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range []uint64{border, border + 0x100000} {
		if _, err := m.MapView(s, ViewRequest{Protection: ReadWrite, Base: v}); err != nil {
			t.Fatal(err)
		}
	}
	m.alloc(border-0x10000, 0x10000, reserveCommit, ReadWrite)
	m.alloc(border+0x200000, 4*PageSize, reserveCommit, ReadWrite)
	if err := m.Write(border-2*PageSize, make([]byte, 2*PageSize)); err != nil {
		t.Fatal(err)
	}
	return m, file, h
}

const border = 0x10010000

// soon fails unless f returns without the host's doing.
func soon(t *testing.T, what string, f func() error) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	case <-time.After(20 * time.Second):
		t.Errorf("%s waits for the host", what)
	}
}

// TestNobodyWaitsForView has calls wait for the host in all ways that there are: READs and WRITEs of other memory, without
// which the host does not go on, and calls that change other memory do not wait for them.
func TestNobodyWaitsForView(t *testing.T) {
	data := make([]byte, 2*PageSize)
	for what, call := range map[string]func(m *machine, file Handle) error{
		"a store":                   func(m *machine, _ Handle) error { return m.Write(border, data) },
		"a store across the border": func(m *machine, _ Handle) error { return m.Write(border-PageSize, data) },
		"a store from outside":      func(m *machine, _ Handle) error { return m.WriteMemory(border-PageSize, data) },
		"a load across the border":  func(m *machine, _ Handle) error { return m.Read(border-PageSize, data) },
		"WriteFile": func(m *machine, file Handle) error {
			_, err := m.WriteFile(file, border-2*PageSize, PageSize)
			return err
		},
	} {
		t.Run(what, func(t *testing.T) {
			m, file, h := waitingMachine(t)
			w := m.Window(&fakeHost{t: t, pages: make(map[uint64]*fakePage)})
			var all sync.WaitGroup
			waitFor := func(what string, f func() error) {
				all.Go(func() {
					if err := f(); err != nil {
						t.Errorf("%s: %v", what, err)
					}
				})
			}
			waitFor(what, func() error { return call(m, file) })
			<-h.entered
			// These may wait for it, and nobody for them.
			waitFor("UnmapViewOfFile", func() error { return m.UnmapView(border, 0) })
			waitFor("a large VirtualProtect", func() error {
				if _, err := m.Protect(border-2*PageSize, 4*PageSize, ReadWrite); err != InvalidAddress {
					return errors.New("it went through")
				}
				return nil
			})
			time.Sleep(20 * time.Millisecond)

			page := make([]byte, PageSize)
			yes := func() bool { return true }
			soon(t, "a READ into the host's cache", func() error { return w.Fault(border-PageSize, page, yes) })
			soon(t, "a READ ahead", func() error { return w.Fault(border-2*PageSize, data, yes) })
			soon(t, "a WRITE", func() error { return w.WriteBack(border-PageSize, page) })
			soon(t, "a WRITE of what is a view now", func() error { return w.WriteBack(border, page) })
			soon(t, "read(2)", func() error { _, err := w.ReadDirect(border-PageSize, page, false); return err })
			soon(t, "write(2)", func() error { _, err := w.WriteDirect(border-PageSize, page, false); return err })
			soon(t, "a READ of the view", func() error {
				if w.Fault(border, page, yes) == nil {
					return errors.New("it was answered")
				}
				return nil
			})
			soon(t, "VirtualFree", func() error { return m.Free(border+0x200000, PageSize, MemDecommit) })
			soon(t, "VirtualProtect", func() error { _, err := m.Protect(border-PageSize, PageSize, ReadWrite); return err })
			soon(t, "releasing", func() error { return m.Free(border+0x200000, 0, MemRelease) })
			soon(t, "unmapping another view", func() error { return m.UnmapView(border+0x100000, 0) })
			soon(t, "check", func() error { return errors.Join(m.Machine.Check()...) })
			soon(t, "another process's window", func() error {
				p, err := m.Start(Image{})
				if err == nil {
					p.Window(&fakeHost{t: t, pages: make(map[uint64]*fakePage)})
					m.End(p)
				}
				return err
			})
			close(h.end)
			all.Wait()
			if n := len(m.waiting); n != 0 {
				t.Errorf("%d places are still taken", n)
			}
		})
	}
}

// TestWindowOpensBesideView: the first who maps a process's memory does not wait for a call that waits for the host.
func TestWindowOpensBesideView(t *testing.T) {
	m, _, h := waitingMachine(t)
	done := make(chan error, 1)
	go func() { done <- m.Write(border, []byte{1}) }()
	<-h.entered
	soon(t, "a window", func() error { m.Window(&fakeHost{t: t, pages: make(map[uint64]*fakePage)}); return nil })
	close(h.end)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestEndBesideWaiting: a process that ends waits for its calls, but a READ of its memory does not wait for the end.
func TestEndBesideWaiting(t *testing.T) {
	m, _, h := waitingMachine(t)
	w := m.Window(&fakeHost{t: t, pages: make(map[uint64]*fakePage)})
	stored, ended := make(chan error, 1), make(chan struct{})
	go func() { stored <- m.Write(border, []byte{1}) }()
	<-h.entered
	go func() { m.End(m.Process); close(ended) }()
	for !m.Ended() {
		time.Sleep(time.Millisecond)
	}
	soon(t, "a READ", func() error {
		if w.Fault(border-PageSize, make([]byte, PageSize), func() bool { return true }) == nil {
			return errors.New("it was answered")
		}
		return nil
	})
	soon(t, "a WRITE", func() error { return w.WriteBack(border-PageSize, make([]byte, PageSize)) })
	soon(t, "a call", func() error {
		if _, err := m.Alloc(0, PageSize, reserveCommit, ReadWrite); err != AccessDenied {
			return errors.New("it went through")
		}
		return nil
	})
	close(h.end)
	<-ended
	if err := <-stored; err != nil {
		t.Error(err)
	}
}

// TestTooManyWait: when as many calls wait for the host as may, others are Busy, have done nothing, and go through when that is
// over.
func TestTooManyWait(t *testing.T) {
	m, _, h := waitingMachine(t)
	var all sync.WaitGroup
	for range hostWaits {
		all.Go(func() {
			if err := m.Write(border, []byte{1}); err != nil {
				t.Error(err)
			}
		})
		<-h.entered
	}
	if err := m.Write(border-1, []byte{1, 2}); err != Busy {
		t.Errorf("one more store: %v", err)
	}
	var b [1]byte
	if err := m.Read(border-1, b[:]); err != nil || b[0] != 0 {
		t.Errorf("a store that was refused has stored %d, %v", b[0], err)
	}
	close(h.end)
	all.Wait()
	if err := m.Write(border-1, []byte{1, 2}); err != nil {
		t.Error(err)
	}
}

// TestStackElsewhere: the place of a stack that was freed behind the thread's back is like any other.
func TestStackElsewhere(t *testing.T) {
	m := newMachine(t, 64, 64, Image{})
	th, err := m.NewThread(0)
	if err != nil {
		t.Fatal(err)
	}
	is(t, "free", m.Free(th.Bottom, 0, MemRelease), nil)
	at := th.Bottom + 0x20000
	m.alloc(at, PageSize, reserveCommit, ReadWrite|Guard)
	is(t, "a touch", m.Read(at, make([]byte, 1)), &Exception{StatusGuardPageViolation, Read, at})
	is(t, "another one", m.Read(at, make([]byte, 1)), nil)
}

// TestFreePhysicalKeepsStores: what programs have stored in their mappings of other memory outlives FreeUserPhysicalPages.
func TestFreePhysicalKeepsStores(t *testing.T) {
	m := newMachine(t, 64, 64, Image{LockMemory: true})
	m.alloc(border, PageSize, reserveCommit, ReadWrite)
	h := newFakeHost(t, m.Process)
	frames, err := m.AllocatePhysical(2)
	if err != nil {
		t.Fatal(err)
	}
	at := m.alloc(0, 0x10000, MemReserve|MemPhysical, ReadWrite)
	is(t, "map", m.MapPhysical(at, 2, frames), nil)
	h.store32(t, at, 7)
	h.store32(t, border, 77)
	if n, err := m.FreePhysical(frames); n != 2 || err != nil {
		t.Errorf("freed %d, %v", n, err)
	}
	if n := read32(t, m.Process, border); n != 77 {
		t.Errorf("private memory reads %d", n)
	}
	if err := h.touch(at, false, func([]byte) {}); err == nil {
		t.Error("a page that was freed can be loaded through a mapping")
	}
}

var _ mm.Host = (*slowHost)(nil)

// TestPlain: no view of a file comes while a call runs that is not to meet one.
func TestPlain(t *testing.T) {
	m, file, h := waitingMachine(t)
	close(h.end)
	if _, ok := m.Plain(); ok {
		t.Error("a process with views is said to have none")
	}
	for _, v := range []uint64{border, border + 0x100000} {
		is(t, "unmap", m.UnmapView(v, 0), nil)
	}
	leave, ok := m.Plain()
	if !ok {
		t.Fatal("a process without views is said to have some")
	}
	s, _, err := m.CreateSection(file, uint32(ReadWrite), 0, "", false)
	is(t, "section", err, nil)
	own, _, err := m.CreateSection(NoHandle, uint32(ReadWrite), PageSize, "", false)
	is(t, "section", err, nil)
	soon(t, "a view of no file", func() error { _, err := m.MapView(own, ViewRequest{Protection: ReadWrite}); return err })
	done := make(chan error, 1)
	go func() { _, err := m.MapView(s, ViewRequest{Protection: ReadWrite}); done <- err }()
	select {
	case <-done:
		t.Error("a view has come meanwhile")
	case <-time.After(20 * time.Millisecond):
	}
	leave()
	is(t, "the view", <-done, nil)
	if _, ok := m.Plain(); ok {
		t.Error("a process with a view is said to have none")
	}
}
