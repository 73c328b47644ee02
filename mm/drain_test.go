package mm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"memfs/mm/store"
)

// pagedMachine is a machine whose files' pages say who they are.
type pagedMachine struct {
	t      *testing.T
	s      *System
	g      *Segment
	stores []*store.Mem
	flaky  []*store.Flaky
}

// newPagedMachine makes one of so many frames, with page files of the given slots and priorities.
func newPagedMachine(t *testing.T, c Config, frames uint64, files ...[2]uint64) *pagedMachine {
	t.Helper()
	b := Budget{Memory: 64 << 20, Frames: frames, HostBytes: 1024 * PageSize, CommitLimit: frames - 4}
	m := &pagedMachine{t: t}
	for _, f := range files {
		m.stores = append(m.stores, store.NewMem())
		m.flaky = append(m.flaky, store.NewFlaky(m.stores[len(m.stores)-1], 1))
		c.PageFiles = append(c.PageFiles, PageFileConfig{Name: "test", Store: m.flaky[len(m.flaky)-1], Max: f[0], Priority: int(f[1])})
		b.PageFile += f[0]
		b.CommitLimit += f[0]
	}
	c.Patience = 2 * time.Second
	s, err := NewFromBudget(b, c)
	if err != nil {
		t.Fatal(err)
	}
	m.s, m.g = s, s.NewSegment(noHost{})
	return m
}

// close proves that nothing is leaked.
func (m *pagedMachine) close() {
	m.t.Helper()
	m.check()
	m.g.Delete()
	if err := m.s.Close(); err != nil {
		m.t.Error(err)
	}
}

func (m *pagedMachine) check() {
	m.t.Helper()
	if err := errors.Join(m.s.Check()...); err != nil {
		m.t.Fatal(err)
	}
}

// content is what page n holds.
func content(n uint64) []byte {
	b := make([]byte, PageSize)
	for at := 0; at < PageSize; at += 8 {
		binary.LittleEndian.PutUint64(b[at:], n*0x9e3779b97f4a7c15+uint64(at)*0x100000001b3+1)
	}
	return b
}

// write writes pages first..last and has them leave the working set.
func (m *pagedMachine) write(first, last uint64) {
	m.t.Helper()
	for n := first; n <= last; n++ {
		if err := m.g.Write(int64(n)*PageSize, content(n)); err != nil {
			m.t.Fatalf("page %d: %v", n, err)
		}
		if n%8 == 0 {
			m.out()
		}
	}
	m.out()
}

// out trims and writes everything.
func (m *pagedMachine) out() {
	m.t.Helper()
	if _, err := m.g.Trim(); err != nil {
		m.t.Fatal(err)
	}
	if _, err := m.s.FlushModified(); err != nil {
		m.t.Fatal(err)
	}
}

// expect reads pages first..last.
func (m *pagedMachine) expect(first, last uint64) {
	m.t.Helper()
	for n := first; n <= last; n++ {
		set, err := m.g.Read(int64(n)*PageSize, PageSize, make([]byte, PageSize))
		if err != nil {
			m.t.Fatalf("page %d: %v", n, err)
		}
		if !bytes.Equal(set.Slices()[0], content(n)) {
			m.t.Fatalf("page %d holds something else", n)
		}
		set.Done()
		if n%8 == 0 {
			m.out()
		}
	}
	m.out()
}

// wiped waits until every slot that is to be overwritten is.
func (m *pagedMachine) wiped() {
	for deadline := time.Now().Add(time.Minute); ; {
		left := uint64(0)
		for _, f := range m.s.files.disks() {
			left += f.info().Wiping
		}
		if left == 0 {
			return
		}
		if m.s.wipeStep() == 0 && time.Now().After(deadline) {
			m.t.Fatalf("%d slots wait to be overwritten", left)
		}
	}
}

// used is how many slots of each page file are in use, by number.
func (m *pagedMachine) used() (used []uint64) {
	for _, f := range m.s.Snapshot().PageFiles {
		used = append(used, f.Used)
	}
	return used
}

// TestPageFilePriority: the page file of the highest priority is filled first, and equals share what comes.
func TestPageFilePriority(t *testing.T) {
	m := newPagedMachine(t, Config{}, 64, [2]uint64{1000, 1}, [2]uint64{100, 7}, [2]uint64{1000, 1})
	m.write(0, 79)
	if u := m.used(); u[0] != 0 || u[1] != 80 || u[2] != 0 {
		t.Fatalf("80 pages lie %v; want them all in the second file", u)
	}
	m.write(80, 499)
	u := m.used()
	if u[1] != 100 || u[0]+u[1]+u[2] != 500 {
		t.Fatalf("500 pages lie %v; want the second file full", u)
	}
	if u[0] < 150 || u[2] < 150 {
		t.Errorf("equals hold %d and %d pages", u[0], u[2])
	}
	m.expect(0, 499)
	m.close()
}

// TestRemovePageFile: pages of a page file that goes find another place, in other page files or in memory, and all of what
// can be promised follows.
func TestRemovePageFile(t *testing.T) {
	for _, encrypt := range []bool{false, true} {
		m := newPagedMachine(t, Config{Encrypt: encrypt}, 64, [2]uint64{400, 5}, [2]uint64{200, 0})
		limit := m.s.Snapshot().CommitLimit
		m.write(0, 219)
		m.s.EmptyStandby()
		set, err := m.g.Read(0, PageSize, make([]byte, PageSize)) // one of them is in a frame as well
		if err != nil {
			t.Fatal(err)
		}
		set.Done()
		moved, err := m.s.RemovePageFile(0)
		if err != nil || moved < 219 {
			t.Fatalf("removed %d pages, %v", moved, err)
		}
		m.check()
		if s := m.s.Snapshot(); len(s.PageFiles) != 1 || s.PageFiles[0].Number != 1 || s.CommitLimit != limit-400 {
			t.Fatalf("afterwards: %+v, limit %d", s.PageFiles, s.CommitLimit)
		}
		m.expect(0, 219)
		// What is left cannot go: the pages do not fit into memory.
		before := m.used()
		if _, err := m.s.RemovePageFile(1); !errors.Is(err, StatusInvalidParameter) {
			t.Fatalf("removing what is needed: %v", err)
		}
		m.check()
		if after := m.used(); len(after) != 1 || after[0] != before[0] {
			t.Fatalf("a refusal moved pages: %v, %v", before, after)
		}
		m.expect(0, 219)
		m.g.Punch(40, 219)
		if _, err := m.s.RemovePageFile(1); err != nil {
			t.Fatalf("to memory: %v", err)
		}
		m.check()
		if len(m.used()) != 0 {
			t.Fatal("there is a page file left")
		}
		m.expect(0, 39)
		if err := m.g.Write(100*PageSize, make([]byte, 30*PageSize)); !errors.Is(err, StatusCommitmentLimit) {
			t.Fatalf("writing more than 60 frames hold: %v", err)
		}
		n, err := m.s.AddPageFile(PageFileConfig{Name: "new", Store: store.NewMem(), Max: 300, Priority: 3})
		if err != nil || n != 0 {
			t.Fatalf("added as %d, %v", n, err)
		}
		m.write(40, 250)
		m.expect(0, 250)
		if s := m.s.Snapshot(); len(s.PageFiles) != 1 || s.PageFiles[0].Used < 190 || s.CommitLimit != 64-4+300-pagesOf(s.Budget.SlotBytes) {
			t.Fatalf("afterwards: %+v, limit %d", s.PageFiles, s.CommitLimit)
		}
		m.close()
	}
}

// TestRemoveBrokenPageFile: a page that cannot be read keeps its page file; everything else stays whole, and the file can
// go when the page is given up.
func TestRemoveBrokenPageFile(t *testing.T) {
	m := newPagedMachine(t, Config{}, 64, [2]uint64{400, 5}, [2]uint64{400, 0})
	m.write(0, 99)
	m.s.EmptyStandby()
	_, slot := m.g.pteOf(70).location().file(), m.g.pteOf(70).location().slot()
	page := readSlot(t, m.stores[0], slot)
	page[5] ^= 1
	if err := m.stores[0].WriteSlots(slot, [][]byte{page}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.s.RemovePageFile(0); !errors.Is(err, StatusInPageError) {
		t.Fatalf("removed: %v", err)
	}
	m.check()
	if n := m.s.Snapshot().Counters.ChecksumErrors; n == 0 {
		t.Error("the damage was not counted")
	}
	if m.s.Snapshot().CommitLimit != 64-4+800 {
		t.Error("the commit limit did not come back")
	}
	m.expect(0, 69)
	m.expect(71, 99)
	m.g.Punch(70, 70)
	if _, err := m.s.RemovePageFile(0); err != nil {
		t.Fatal(err)
	}
	m.check()
	m.expect(71, 99)
	m.g.Punch(0, 99)
	m.close()
}

// TestRemoveWithoutDisk: when the other page file takes nothing, a removal ends in words, and nothing is lost.
func TestRemoveWithoutDisk(t *testing.T) {
	m := newPagedMachine(t, Config{}, 64, [2]uint64{400, 5}, [2]uint64{400, 0})
	m.write(0, 99)
	m.s.EmptyStandby()
	m.flaky[1].SetFaults(store.Fault{Kind: store.Fail, Ops: store.OpWrite, Errno: unix.EIO})
	if _, err := m.s.RemovePageFile(0); !errors.Is(err, StatusBusy) {
		t.Fatalf("removed: %v", err)
	}
	m.check()
	m.expect(0, 99)
	m.flaky[1].SetFaults()
	if _, err := m.s.RemovePageFile(0); err != nil {
		t.Fatal(err)
	}
	m.expect(0, 99)
	m.close()
}

// TestSpaceGoesBack: what is freed in a page file goes back to its disk, and comes again when it is needed.
func TestSpaceGoesBack(t *testing.T) {
	dir := t.TempDir()
	f, err := store.OpenFile(dir)
	if err != nil {
		t.Fatal(err)
	}
	blocks := func() (bytes uint64) {
		t.Helper()
		n, err := f.Blocks()
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	m := newPagedMachine(t, Config{}, 64)
	if _, err := m.s.AddPageFile(PageFileConfig{Name: "disk", Store: f, Max: 20000}); err != nil {
		t.Fatal(err)
	}
	m.write(0, 999)
	if got := blocks(); got < 1000*PageSize {
		t.Skipf("the disk says that 1000 pages take %d bytes", got)
	}
	m.g.Punch(0, 999)
	m.s.giveBackSlots() // one look that finds it idle, one that gives back
	m.s.giveBackSlots()
	m.check()
	if got, size := blocks(), m.s.Snapshot().PageFiles[0].Size; got > chunkSlots*PageSize || size > chunkSlots {
		t.Errorf("nothing is in use, but %d bytes are on the disk, %d slots", got, size)
	}
	m.write(0, 999)
	m.s.giveBackSlots()
	m.check()
	m.expect(0, 999)
	m.close()
}

// TestWipe: nothing of a page is left in its frame, its slot, or in compressed memory, when it is deleted.
func TestWipe(t *testing.T) {
	z, err := store.NewCompressed("s2", 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	for _, compressed := range []*CompressedConfig{nil, {Store: z, Limit: 512 << 10, Slots: 1000}} {
		m := newPagedMachine(t, Config{Wipe: true, Compressed: compressed}, 512, [2]uint64{1000, 0})
		secret := bytes.Repeat([]byte("hunter2!"), PageSize/8)
		if compressed != nil { // compresses, but is not one word over and over
			for at := 0; at < PageSize; at += 128 {
				secret[at+100] = byte(at >> 7)
			}
		}
		for n := range int64(300) {
			if err := m.g.Write(n*PageSize, secret); err != nil {
				t.Fatal(err)
			}
		}
		m.out()
		for n := range int64(100) {
			if err := m.g.Write(n*PageSize, secret); err != nil {
				t.Fatal(err)
			}
		}
		if compressed == nil && m.used()[0] < 200 {
			t.Fatalf("only %v slots are in use", m.used())
		}
		found := func() (frames, slots int) {
			for f := 1; f <= 512; f++ {
				if bytes.Contains(m.s.pfn.Run(1, 512)[(f-1)*PageSize:f*PageSize], secret[:64]) {
					frames++
				}
			}
			for i := range m.s.files.at(0).laidOut() {
				if bytes.Contains(readSlot(t, m.stores[0], i), secret[:64]) {
					slots++
				}
			}
			return frames, slots
		}
		if frames, slots := found(); frames < 300 || compressed == nil && slots < 300 {
			t.Fatalf("before: found in %d frames, %d slots", frames, slots)
		}
		m.g.Punch(0, 149)
		m.wiped()
		m.check()
		if frames, slots := found(); frames > 150 || slots > 150 {
			t.Errorf("with half of it deleted: found in %d frames, %d slots", frames, slots)
		}
		m.g.Punch(0, 299)
		m.wiped()
		m.check()
		if frames, slots := found(); frames > 0 || slots > 0 {
			t.Errorf("afterwards: found in %d frames, %d slots", frames, slots)
		}
		m.close()
	}
}
