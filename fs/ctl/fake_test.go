package ctl

import (
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"memfs/mapping"
	"memfs/mm"
	"memfs/mm/pfn"
	"memfs/mm/process"
)

// fakeMachine records what it is told to do, and does as it is told to in the fields.
type fakeMachine struct {
	calls    []string
	snapshot mm.Snapshot
	findings []error
	frames   []mm.FrameInfo
	err      error // of the commands that can fail
}

func (m *fakeMachine) call(name string) { m.calls = append(m.calls, name) }

func (m *fakeMachine) Snapshot() mm.Snapshot { return m.snapshot }
func (m *fakeMachine) Check() []error        { m.call("Check"); return m.findings }
func (m *fakeMachine) TrimAll() (uint64, error) {
	m.call("TrimAll")
	return 812, m.err
}
func (m *fakeMachine) FlushModified() (uint64, error) {
	m.call("FlushModified")
	return 97, m.err
}
func (m *fakeMachine) EachFrame(f func(*mm.FrameInfo) bool) {
	for i := range m.frames {
		if !f(&m.frames[i]) {
			return
		}
	}
}
func (m *fakeMachine) EmptyStandby() uint64  { m.call("EmptyStandby"); return 1000 }
func (m *fakeMachine) EmptyStandby0() uint64 { m.call("EmptyStandby0"); return 10 }
func (m *fakeMachine) ZeroFree() uint64      { m.call("ZeroFree"); return 7 }
func (m *fakeMachine) SetMemory(bytes uint64) (mm.Resized, error) {
	m.call(fmt.Sprintf("SetMemory(%d)", bytes))
	if m.err == nil {
		m.snapshot.Budget.Memory = bytes
	}
	return mm.Resized{Budget: m.snapshot.Budget, Added: 11, Retired: 22, Trimmed: 33, Written: 44}, m.err
}
func (m *fakeMachine) SetGuarantee(bytes uint64) (locked, unlocked uint64, err error) {
	m.call(fmt.Sprintf("SetGuarantee(%d)", bytes))
	return 5, 6, m.err
}
func (m *fakeMachine) SetSize(bytes uint64) error {
	m.call(fmt.Sprintf("SetSize(%d)", bytes))
	if m.err == nil {
		m.snapshot.Budget.Size = bytes
	}
	return m.err
}
func (m *fakeMachine) EmptySpaces() uint64 { m.call("EmptySpaces"); return 5 }
func (m *fakeMachine) SystemCache() (mm.CacheLimits, uint64) {
	return mm.CacheLimits{Min: 100, Max: 200, Hard: true}, 150
}
func (m *fakeMachine) SetSystemCache(c mm.CacheLimits) (uint64, error) {
	m.call(fmt.Sprintf("SetSystemCache(%+v)", c))
	return 66, m.err
}
func (m *fakeMachine) Combine() (mm.Combined, error) {
	m.call("Combine")
	return mm.Combined{Scanned: 900, Joined: 70, Freed: 70, Slots: 3}, m.err
}
func (m *fakeMachine) AddPageFile(c mm.PageFileConfig) (int, error) {
	m.call(fmt.Sprintf("AddPageFile(%s,%d)", c.Name, c.Max))
	return 1, m.err
}
func (m *fakeMachine) RemovePageFile(n int) (uint64, error) {
	m.call(fmt.Sprintf("RemovePageFile(%d)", n))
	return 55, m.err
}

// fakeHost is a host that holds nothing.
type fakeHost struct{ *fakeFile }

func (fakeHost) WriteBack(off, n int64) error  { return nil }
func (fakeHost) Invalidate(off, n int64) error { return nil }
func (fakeHost) Written() bool                 { return false }

// fakeFile is a file of the given pages, in order.
type fakeFile struct {
	calls []string
	size  uint64
	pages []mm.PageInfo
	err   error
}

func (f *fakeFile) Info() mapping.Info {
	return mapping.Info{Size: f.size, Committed: uint64(len(f.pages))}
}
func (f *fakeFile) Blocks() uint64 { return uint64(len(f.pages)) * 8 }

func (f *fakeFile) Offer(off, n int64, priority uint8) (uint64, error) {
	f.calls = append(f.calls, fmt.Sprintf("Offer(%d,%d,%d)", off, n, priority))
	return 8, f.err
}
func (f *fakeFile) Reclaim(off, n int64) mm.Offered {
	f.calls = append(f.calls, fmt.Sprintf("Reclaim(%d,%d)", off, n))
	return mm.Offered{Reclaimed: 5, Lost: 3}
}
func (f *fakeFile) EachPage(first, n uint64, do func(mm.PageInfo) bool) {
	at, _ := slices.BinarySearchFunc(f.pages, first, func(p mm.PageInfo, first uint64) int {
		switch {
		case p.Index < first:
			return -1
		case p.Index > first:
			return 1
		}
		return 0
	})
	for _, p := range f.pages[at:] {
		if p.Index-first >= n || !do(p) {
			return
		}
	}
}

func (f *fakeFile) Trim() (uint64, error)  { f.calls = append(f.calls, "Trim"); return 5, f.err }
func (f *fakeFile) Flush() (uint64, error) { f.calls = append(f.calls, "Flush"); return 3, f.err }
func (f *fakeFile) Discard(off, n int64) error {
	f.calls = append(f.calls, fmt.Sprintf("Discard %d %d", off, n))
	return f.err
}
func (f *fakeFile) Rule() mm.Rule { return mm.Rule{Priority: 3, NoSwap: true, MaxResident: 1024} }
func (f *fakeFile) Bound() (trimmed, evicted uint64, err error) {
	f.calls = append(f.calls, "Bound")
	return 40, 30, f.err
}
func (f *fakeFile) RecordFaults(most int) error {
	f.calls = append(f.calls, fmt.Sprintf("RecordFaults(%d)", most))
	return f.err
}
func (f *fakeFile) StopFaults() uint64 { f.calls = append(f.calls, "StopFaults"); return 2 }
func (f *fakeFile) ForgetFaults()      { f.calls = append(f.calls, "ForgetFaults") }
func (f *fakeFile) FaultLog() FaultLog { return fakeLog{} }

// fakeLog is a recording of two faults.
type fakeLog struct{}

func (fakeLog) Missed() uint64 { return 3 }
func (fakeLog) Each() iter.Seq[FaultRecord] {
	return slices.Values([]FaultRecord{
		{Off: 8192, Len: 131072, Hard: 30, Soft: 2, Pid: 4711, At: 1234567 * time.Nanosecond},
		{Off: 4096, Len: 4096, Soft: 1, Pid: 4712, At: 3 * time.Second},
		{Off: 0, Len: 4096, Pid: 4712, At: 4 * time.Second},
	})
}

func (f *fakeFile) Faults() mm.FaultCounts {
	return mm.FaultCounts{DemandZero: 901, Soft: 802, Hard: 703}
}
func (f *fakeFile) SetRule(name, value string) (uint64, error) {
	f.calls = append(f.calls, name+"="+value)
	return 2, f.err
}
func (f *fakeFile) Prefetch(off, n int64) (uint64, error) {
	f.calls = append(f.calls, fmt.Sprintf("Prefetch %d %d", off, n))
	return uint64(n+mm.PageSize-1) >> mm.PageShift, f.err
}

// page is a page with its frame and slot as its state needs them.
func page(index uint64, state byte) mm.PageInfo {
	p := mm.PageInfo{Index: index, State: state, Frame: -1, PageFile: -1, Slot: -1}
	switch state {
	case mm.StatePaged:
		p.PageFile, p.Slot = 0, int64(index)+100
		p.Why = "Repurposed"
	case mm.StateActive:
		p.Frame, p.Priority, p.Dirty, p.Host = int64(index)+10, 5, true, true
	case mm.StateStandby:
		p.Frame, p.Priority, p.PageFile, p.Slot = int64(index)+10, 3, 1, int64(index)+100
	}
	return p
}

// fakeLedger has room for so many bytes.
type fakeLedger struct{ room, held int }

func (l *fakeLedger) ChargeRecord(n int) error {
	if l.held+n > l.room {
		return mm.StatusCommitmentLimit
	}
	l.held += n
	return nil
}
func (l *fakeLedger) ReleaseRecord(n int) { l.held -= n }

// testMount is a mount whose every figure differs from the others.
func testMount() (*Mount, *fakeMachine) {
	m := &fakeMachine{snapshot: mm.Snapshot{
		Frames: 10700, Zeroed: 1001, Free: 502, Modified: 203, ModifiedNoWrite: 4, Transition: 5, Active: 8006, Bad: 7,
		RecordFrames: 308, HostPages: 4009, HostLimit: 5010, Views: 111,
		Commit: 40012, CommitPeak: 50013, CommitLimit: 530014, RecordBytes: 1500160, Sections: 17,
		PageFiles: []mm.PageFileInfo{
			{Name: "/var/tmp/memfs page\nfile", Size: 1018, Max: 520019, Used: 920, Peak: 1021},
		},
	}}
	file := &fakeFile{}
	m.frames = []mm.FrameInfo{
		{Frame: 1, Info: pfn.Info{State: pfn.Active, Owner: 5, Priority: 5, Refs: 2, Dirty: true, Why: pfn.MakeValid}, Shares: 1,
			Use: mm.FileFrame, Page: 7, Cached: true, Host: fakeHost{file}},
		{Frame: 2, Info: pfn.Info{State: pfn.Standby, Owner: 6, Original: 10<<16 | 1<<8, Priority: 1, Why: pfn.TrimClean},
			Use: mm.FileFrame, Page: 9, Host: fakeHost{file}},
		{Frame: 3, Info: pfn.Info{State: pfn.Modified, Owner: 8, Dirty: true, Why: pfn.TrimDirty}, Use: mm.PrivateFrame, Page: 0x400},
		{Frame: 4, Info: pfn.Info{State: pfn.Active, Record: true, Why: pfn.MakeValid}, Use: mm.RecordFrame},
		{Frame: 5, Info: pfn.Info{State: pfn.Zeroed, Why: pfn.MadeZero}},
	}
	m.snapshot.Budget.Memory, m.snapshot.MaxMemory, m.snapshot.Budget.Size = 64<<20, 16<<30+5, 300<<20
	m.snapshot.FileCommit, m.snapshot.Retired = 39012, 31
	m.snapshot.Some = mm.PressureInfo{Avg: [3]float64{12.345, 6.7, 0.004}, Total: 1234567 * time.Microsecond}
	m.snapshot.Full = mm.PressureInfo{Avg: [3]float64{100, 0.1, 0}, Total: 89 * time.Millisecond}
	for i := range m.snapshot.Standby {
		m.snapshot.Standby[i] = uint64(100 + i)
	}
	c := &m.snapshot.Counters
	c.PageFaults, c.DemandZeroFaults, c.TransitionFaults, c.HardFaults = 90001, 40002, 30003, 20004
	c.WriteCopies = 70009
	c.PageReads, c.PagesInput, c.PageWrites, c.PagesOutput = 2005, 20006, 1007, 60008
	c.ViewsMapped, c.ViewsTrimmed, c.PagesTrimmed = 309, 210, 7011
	for i := range c.Repurposed {
		c.Repurposed[i] = uint64(500 + i)
	}
	return &Mount{
		Machine: m,
		Version: "1.2.3",
		Facts:   func() [][2]string { return [][2]string{{"Kernel", "6.18"}, {"write-back cache", "on"}} },
		Inodes:  func() (used, max uint64) { return 12, 34567 },
		Owners: func() []Owner {
			return []Owner{
				{Kind: "user", UID: 1000, Files: 3, Holdings: mm.Holdings{Committed: 400, InMemory: 300, Paged: 90, Compressed: 10},
					Largest: "/a \n file", Soft: 11, Hard: 22, Read: 3333, Written: 4444},
				{Kind: "process", UID: 1000, Pid: 4711, Comm: "a (b", Files: 1, Holdings: mm.Holdings{Committed: 100}},
				{Kind: "user", Rest: true},
			}
		},
		Resident: func() uint64 { return 77 << 20 },
		FaultTimes: func() []Timing {
			h := new(Histogram)
			h.Add(70 * time.Microsecond)
			h.Add(2 * time.Second)
			return []Timing{{"pagefile", h}}
		},
		FileOf: func(mm.Host) Place { return Place{Inode: 42, Name: "/a \n file"} },
	}, m
}

// testFile is a file with a page of each kind that matters, holes, and pages beyond its end.
func testFile() *RegularFile {
	return &RegularFile{
		Stat: Stat{Inode: 42, Type: "regular", Links: 1},
		File: &fakeFile{size: 1 << 20, pages: []mm.PageInfo{
			page(0, mm.StateActive), page(1, mm.StateStandby), page(2, mm.StatePaged), page(130, mm.StateModified),
			page(300, mm.StateCommitted),
		}},
		Area: process.ControlArea{
			Sections: []process.SectionInfo{
				{Name: `Global\ring`, Size: 1 << 20, Protection: process.ReadWrite, Attributes: process.SecCommit, Handles: 2,
					References: 3, Views: 1, Subsections: make([]process.Subsection, 1)},
				{Size: 4096, Protection: process.WriteCopy, Attributes: process.SecFile | process.SecNoCache, Handles: 1,
					References: 2, Views: 1, Subsections: make([]process.Subsection, 1)},
			},
			Views: []process.ViewInfo{
				{Process: 4, Base: 0x10000, Size: 65536, Offset: 1 << 16, Protection: process.ReadOnly},
				{Process: 8, Base: 0x7ff0000, Size: 4096, Protection: process.WriteCopy, Section: 1},
			},
		},
	}
}

var errTwoLines = errors.New("first\nsecond")

func render(d *Doc, asJSON bool) string {
	var b strings.Builder
	var err error
	if asJSON {
		err = d.WriteJSON(&b)
	} else {
		err = d.WriteText(&b)
	}
	if err != nil {
		panic(err) // a strings.Builder takes everything
	}
	return b.String()
}
