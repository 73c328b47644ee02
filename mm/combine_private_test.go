package mm

import (
	"bytes"
	"fmt"
	"testing"

	"memfs/mm/store"

	"pgregory.net/rapid"
)

// TestCombinePrivate: pages of two processes and of a file with the same bytes share one frame, where they are in the working
// sets as before; a store gives the page that is stored into its own again, and everything goes back in the end.
func TestCombinePrivate(t *testing.T) {
	m := newPagedMachine(t, Config{}, 512, [2]uint64{1000, 0})
	const pages, kinds, base = 40, 4, 0x1000
	a, b := m.s.NewSpace(), m.s.NewSpace()
	for _, p := range []*Space{a, b} {
		mustDo(t, p.Commit(base, base+pages-1))
		for n := range uint64(pages) {
			mustDo(t, p.Write((base+n)<<PageShift, content(n%kinds)))
		}
	}
	fill(t, m.g, pages, kinds)
	b.Empty()
	before := m.s.Snapshot()
	done, err := m.s.Combine()
	if err != nil || done.Joined != 3*pages-kinds || done.Freed != done.Joined {
		t.Fatalf("combined %+v, %v", done, err)
	}
	m.check()
	after := m.s.Snapshot()
	// A page of records may come with it.
	if free := after.Free + after.Zeroed - before.Free - before.Zeroed; free < done.Freed-2 || after.Commit > before.Commit+2 {
		t.Errorf("%d frames are free more, commit was %d and is %d", free, before.Commit, after.Commit)
	}
	if a.Resident() != pages || b.Resident() != 0 {
		t.Errorf("%d and %d pages in the working sets, want %d and 0", a.Resident(), b.Resident(), pages)
	}
	if i := a.Page(base); i.State != StateActive || i.Sharers != 3*pages/kinds || i.Shared || i.Shares != pages/kinds {
		t.Errorf("a page in the working set is %+v", i)
	}
	if i := b.Page(base); i.State != StateModified || i.Sharers != 3*pages/kinds || i.Frame != a.Page(base).Frame {
		t.Errorf("a page outside is %+v", i)
	}
	if h := a.Holdings(); h.InMemory != pages || h.Committed != pages {
		t.Errorf("a process holds %+v", h)
	}
	if done, err := m.s.Combine(); err != nil || done.Joined != 0 {
		t.Errorf("once more: %+v, %v", done, err)
	}
	m.check()

	// A touch is a soft fault into the other working set, and costs no frame.
	mustDo(t, b.Touch(base, base+pages-1))
	if i := b.Page(base); b.Resident() != pages || i.State != StateActive || i.Shares != 2*pages/kinds {
		t.Errorf("touched: %d resident, %+v", b.Resident(), i)
	}
	m.check()

	// Out and back: one slot for each kind.
	a.Empty()
	b.Empty()
	m.out()
	m.s.EmptyStandby()
	m.check()
	if used := m.s.Snapshot().PageFiles[0].Used; used != kinds {
		t.Errorf("%d slots are in use, want %d", used, kinds)
	}
	if i := a.Page(base); i.State != StatePaged {
		t.Errorf("paged out: %+v", i)
	}
	if n, err := b.Prefetch(base, base+1); err != nil || n < 2 || b.Resident() != 0 {
		t.Errorf("%d pages were brought in, %v; %d resident", n, err, b.Resident())
	}
	got := make([]byte, PageSize)
	expect := func(p *Space, n uint64, want []byte) {
		t.Helper()
		mustDo(t, p.Read((base+n)<<PageShift, got))
		if !bytes.Equal(got, want) {
			t.Errorf("page %d holds something else", n)
		}
	}
	for n := range uint64(pages) {
		expect(a, n, content(n%kinds))
	}
	m.check()

	// Copy on write, in part and whole, in the working set and outside.
	copies := m.s.Snapshot().Counters.WriteCopies
	mustDo(t, a.Write((base+1)<<PageShift+100, []byte("mine")))
	mustDo(t, a.Write((base+2)<<PageShift, content(99)))
	b.Empty()
	mustDo(t, b.Write((base+1)<<PageShift+200, []byte("theirs")))
	m.check()
	want := content(1)
	copy(want[100:], "mine")
	expect(a, 1, want)
	want = content(1)
	copy(want[200:], "theirs")
	expect(b, 1, want)
	expect(a, 2, content(99))
	expect(b, 2, content(2))
	expect(a, 5, content(1))
	if !bytes.Equal(readPage(t, m.g, 1), content(1)) {
		t.Error("the file has a process's store")
	}
	if n := m.s.Snapshot().Counters.WriteCopies - copies; n != 3 {
		t.Errorf("%d pages were copied, want 3", n)
	}
	if i := a.Page(base + 1); i.Sharers != 0 || i.State != StateActive {
		t.Errorf("after a store: %+v", i)
	}

	// What is locked has its own frame, and is not combined again.
	mustDo(t, a.Lock(base+3, base+4, 100))
	if i := a.Page(base + 3); !i.Locked || i.Sharers != 0 {
		t.Errorf("a locked page is %+v", i)
	}
	if done, err := m.s.Combine(); err != nil || done.Joined != 0 {
		t.Errorf("with locked pages: %+v, %v", done, err)
	}
	m.check()
	expect(a, 3, content(3))

	// What may be dropped is dropped when it leaves the working set, for this process alone.
	mustDo(t, a.Touch(base+8, base+9))
	a.Reset(base+8, base+9)
	a.Trim(base+8, base+8)
	expect(a, 8, make([]byte, PageSize))
	if !a.UndoReset(base+9, base+9) {
		t.Error("a page in the working set was dropped")
	}
	a.Discard(base+12, base+13)
	expect(a, 12, make([]byte, PageSize))
	expect(b, 8, content(0))
	expect(b, 12, content(0))
	expect(a, 9, content(1))
	m.check()

	a.Decommit(base, base+19)
	m.check()
	b.Delete()
	m.check()
	m.g.Punch(0, pages)
	m.check()
	if s := m.s.Snapshot(); s.CombinedSharers != 20 {
		t.Errorf("%d pages share, want the 20 that are left", s.CombinedSharers)
	}
	a.Delete()
	if s := m.s.Snapshot(); s.Combined != 0 || s.CombinedSharers != 0 {
		t.Errorf("%d pages are shared by %d, who are gone", s.Combined, s.CombinedSharers)
	}
	m.close()
}

// combineModel is two processes and a file whose pages have few different contents, and what each page ought to be.
type combineModel struct {
	s      *System
	spaces [2]*Space
	file   *Segment
	want   [3][]byte // of the processes and the file; nil of a page = not committed
	there  [3][modelPages]bool
}

const modelPages = 24

func (m *combineModel) page(t *rapid.T) (who int, page uint64) {
	return rapid.IntRange(0, 2).Draw(t, "who"), rapid.Uint64Range(0, modelPages-1).Draw(t, "page")
}

func (m *combineModel) Write(t *rapid.T) {
	who, page := m.page(t)
	data := bytes.Repeat([]byte{byte(rapid.IntRange(1, 3).Draw(t, "byte"))}, rapid.SampledFrom([]int{PageSize, PageSize, 2 * PageSize, 100}).Draw(t, "bytes"))
	off := page << PageShift
	data = data[:min(uint64(len(data)), modelPages*PageSize-off)]
	var err error
	if who == 2 {
		err = m.file.Store(int64(off), data)
	} else {
		if err := m.spaces[who].Commit(page, (off+uint64(len(data))-1)>>PageShift); err != nil {
			t.Fatal(err)
		}
		err = m.spaces[who].Write(off, data)
	}
	if err != nil {
		t.Fatal(err)
	}
	copy(m.want[who][off:], data)
	for at := page; at <= (off+uint64(len(data))-1)>>PageShift; at++ {
		m.there[who][at] = true
	}
}

func (m *combineModel) Read(t *rapid.T) {
	who, page := m.page(t)
	got := make([]byte, PageSize)
	off := page << PageShift
	var err error
	if who == 2 {
		err = m.file.Load(int64(off), got)
	} else if err = m.spaces[who].Read(off, got); err == StatusNotCommitted && !m.there[who][page] {
		return
	}
	if err != nil || !bytes.Equal(got, m.want[who][off:off+PageSize]) {
		t.Fatalf("page %d of %d: %v, or it holds something else", page, who, err)
	}
}

func (m *combineModel) Drop(t *rapid.T) {
	who, page := m.page(t)
	if who == 2 {
		m.file.Punch(page, page)
	} else {
		m.spaces[who].Decommit(page, page)
	}
	clear(m.want[who][page<<PageShift:][:PageSize])
	m.there[who][page] = false
}

func (m *combineModel) Discard(t *rapid.T) {
	who, page := m.page(t)
	if who < 2 {
		m.spaces[who].Discard(page, page)
		clear(m.want[who][page<<PageShift:][:PageSize])
	}
}

// Reset says that a page may be dropped, has it leave the working set, and takes that back.
func (m *combineModel) Reset(t *rapid.T) {
	who, page := m.page(t)
	if who == 2 || !m.there[who][page] {
		return
	}
	p := m.spaces[who]
	p.Reset(page, page)
	if rapid.Bool().Draw(t, "trim") {
		p.Trim(page, page)
	}
	if intact := p.UndoReset(page, page); !intact {
		clear(m.want[who][page<<PageShift:][:PageSize])
	}
}

func (m *combineModel) Lock(t *rapid.T) {
	who, page := m.page(t)
	if who == 2 || !m.there[who][page] {
		return
	}
	p := m.spaces[who]
	if p.Page(page).Locked {
		p.UnlockAll(page, page)
	} else if err := p.Lock(page, page, 3); err != nil && err != StatusWorkingSetQuota && err != StatusNoFrames {
		t.Fatal(err)
	}
}

func (m *combineModel) Trim(t *rapid.T) { m.spaces[rapid.IntRange(0, 1).Draw(t, "who")].Empty() }

func (m *combineModel) PageOut(t *rapid.T) {
	if _, err := m.s.FlushModified(); err != nil {
		t.Fatal(err)
	}
	if rapid.Bool().Draw(t, "empty") {
		m.s.EmptyStandby()
	}
}

func (m *combineModel) Prefetch(t *rapid.T) {
	if _, err := m.spaces[rapid.IntRange(0, 1).Draw(t, "who")].Prefetch(0, modelPages); err != nil {
		t.Fatal(err)
	}
}

func (m *combineModel) Combine(t *rapid.T) {
	if _, err := m.s.Combine(); err != nil {
		t.Fatal(err)
	}
}

func (m *combineModel) Check(t *rapid.T) {
	for _, err := range m.s.Check() {
		t.Fatal(err)
	}
	for i, p := range m.spaces {
		var committed, resident uint64
		p.Each(0, modelPages, func(i PageInfo) bool {
			committed++
			if i.State == StateActive {
				resident++
			}
			return true
		})
		if resident != p.Resident() {
			t.Fatalf("process %d: %d pages in its working set, %d are shown there", i, p.Resident(), resident)
		}
		for _, there := range m.there[i] {
			if there {
				committed--
			}
		}
		if committed != 0 || p.Committed() > modelPages {
			t.Fatalf("process %d: %d pages committed more than ought to be", i, committed)
		}
	}
}

// TestCombineModel does random things to two processes and a file whose pages are often the same, on a machine that has enough
// frames for them and on one that has not.
func TestCombineModel(t *testing.T) {
	for _, frames := range []uint64{24, 200} {
		for _, compressed := range []bool{false, true} {
			t.Run(fmt.Sprint(frames, compressed), func(t *testing.T) {
				rapid.Check(t, func(t *rapid.T) { runCombineModel(t, frames, compressed) })
			})
		}
	}
}

func runCombineModel(t *rapid.T, frames uint64, compressed bool) {
	b := Budget{Memory: 16 << 20, Frames: frames, HostBytes: 64 * PageSize, PageFile: 256, CommitLimit: frames + 256}
	c := Config{PageFiles: []PageFileConfig{{Name: "test", Store: store.NewMem(), Max: 256}}}
	if compressed {
		z, err := store.NewCompressed("s2", 256<<10)
		if err != nil {
			t.Fatal(err)
		}
		c.Compressed = &CompressedConfig{Store: z, Limit: 16 << 10, Slots: 100}
	}
	s, err := NewFromBudget(b, c)
	if err != nil {
		t.Fatal(err)
	}
	m := &combineModel{s: s, file: s.NewSegment(noHost{})}
	for i := range m.want {
		m.want[i] = make([]byte, modelPages*PageSize)
	}
	m.spaces[0], m.spaces[1] = s.NewSpace(), s.NewSpace()
	t.Repeat(rapid.StateMachineActions(m))
	m.spaces[0].Delete()
	m.spaces[1].Delete()
	m.file.Delete()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}
