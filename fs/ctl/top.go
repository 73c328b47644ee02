package ctl

import (
	"iter"
	"math"
	"runtime"
	"strconv"
	"strings"
	"unicode"

	"memfs/mm"
	"memfs/mm/process"
)

// Top is the table of the control files of .proc itself.
var Top = []Entry[*Mount]{
	{Name: "version", Perm: 0444, Help: "versions, and which features of the kernel are in use", Render: version},
	{Name: "meminfo", Perm: 0444, Help: "where the memory is, in the form of /proc/meminfo", Render: meminfo},
	{Name: "vmstat", Perm: 0444, Help: "counters since the mount, in the form of /proc/vmstat", Render: vmstat},
	{Name: "pagelists", Perm: 0444, Help: "frames by page list", Render: pagelists},
	{Name: "pfn", Perm: 0400, Help: "one line a frame: list, counts, why it last moved, whose page; read in one go", Render: frames, Stream: true},
	{Name: "pagefiles", Perm: 0444, Help: "page files, in pages of 4096 bytes", Render: pagefiles},
	{Name: "workingsets", Perm: 0444, Help: "working sets and their limits, in pages", Render: workingsets},
	{Name: "pressure", Perm: 0444, Help: "time lost for want of memory, in the form of /proc/pressure/memory", Render: pressure},
	{Name: "ps", Perm: 0444, Help: "processes, with the column DEP as Process Explorer has it; WorkingSet and Private in kB", Render: processes},
	{Name: "owners", Perm: 0400, Help: "who filled the mount and who faults: users, their processes that are alive", Render: owners},
	{Name: "metrics", Perm: 0444, Help: "figures for Prometheus, in its text format", Render: metrics},
	{Name: "limits", Perm: 0444, Help: "what the memory was divided into", Render: limits},
	// Proving every invariant takes time and locks of the whole mount: not for everybody.
	{Name: "check", Perm: 0400, Help: "ok, or a line for each invariant that does not hold", Render: check},
	{Name: helpName, Perm: 0444, Help: "this list"},
	{Name: "ctl", Perm: 0600, Help: "takes the manager's commands, a line each; write help for the list"},
}

const helpName = "help"

// The list of all control files cannot be named in one of the tables that it is made of.
func init() {
	row, _ := Lookup(Top, helpName)
	Top[row].Render = help
}

func version(m *Mount) *Doc {
	d := new(Doc)
	d.Field("memfs", "memfs", Word(m.Version))
	d.Field("Go", "go", Word(runtime.Version()))
	if m.Facts == nil {
		return d
	}
	used := map[string]bool{"v": true, "memfs": true, "go": true}
	for _, f := range m.Facts() {
		key := snake(f[0])
		if used[key] {
			key = "" // the line is still for people
		}
		used[key] = true
		d.Field(f[0], key, Word(f[1]))
	}
	return d
}

// snake makes a JSON key of a label: lower-case letters and digits, everything between them one underscore.
func snake(label string) string {
	var b strings.Builder
	for _, word := range strings.FieldsFunc(label, func(r rune) bool {
		return r > unicode.MaxASCII || !unicode.IsLetter(r) && !unicode.IsDigit(r)
	}) {
		if b.Len() > 0 {
			b.WriteByte('_')
		}
		b.WriteString(strings.ToLower(word))
	}
	return b.String()
}

func standby(s *mm.Snapshot) uint64 {
	var n uint64
	for _, p := range s.Standby {
		n += p
	}
	return n
}

func meminfo(m *Mount) *Doc {
	s := m.Snapshot()
	var swap, swapFree uint64
	for _, f := range s.PageFiles {
		swap += f.Max
		swapFree += f.Max - min(f.Max, f.Used)
	}
	d := new(Doc)
	kB := func(label, key string, bytes uint64) { d.Field(label, key+"_bytes", KB(bytes)) }
	pages := func(label, key string, n uint64) { kB(label, key, n*mm.PageSize) }
	kB("MemTotal", "mem_total", s.Budget.Memory)
	kB("MemMax", "mem_max", s.MaxMemory) // what the command memory can make of it
	pages("MemFree", "mem_free", s.Zeroed+s.Free)
	// As Linux means it: what can be had without writing anything first.
	pages("MemAvailable", "mem_available", s.Zeroed+s.Free+standby(&s))
	pages("LowMark", "low_mark", s.Resource.LowMark) // lowmemory holds while MemAvailable is no more than this
	pages("HighMark", "high_mark", s.Resource.HighMark)
	pages("Frames", "frames", s.Frames)
	pages("Guaranteed", "guaranteed", s.Guaranteed) // of the frames: what the host has given for good
	pages("Zeroed", "zeroed", s.Zeroed)
	pages("Free", "free", s.Free)
	pages("Standby", "standby", standby(&s))
	pages("Modified", "modified", s.Modified)
	pages("ModifiedNoWrite", "modified_no_write", s.ModifiedNoWrite)
	pages("Transition", "transition", s.Transition)
	pages("Active", "active", s.Active)
	pages("Bad", "bad", s.Bad)
	pages("Retired", "retired", s.Retired)
	pages("HostCached", "host_cached", s.HostPages)
	pages("HostLimit", "host_limit", s.HostLimit)
	kB("Records", "records", s.RecordBytes)
	pages("RecordFrames", "record_frames", s.RecordFrames)
	// As Linux has it: what zswap holds, and what that takes.
	pages("Zswapped", "zswapped", s.Compressed.Pages)
	kB("Zswap", "zswap", s.Compressed.Memory)
	// Pages that share their bytes, by how many frames or slots those are in, and how many are saved by it.
	pages("Combined", "combined", s.Combined)
	pages("CombinedSaved", "combined_saved", s.CombinedSharers-s.Combined)
	pages("SwapTotal", "swap_total", swap)
	pages("SwapFree", "swap_free", swapFree)
	pages("CommitLimit", "commit_limit", s.CommitLimit)
	pages("Committed_AS", "committed_as", s.Commit)
	pages("CommitPeak", "commit_peak", s.CommitPeak)
	pages("FileCommit", "file_commit", s.FileCommit)
	kB("FileLimit", "file_limit", fileLimit(&s))
	return d
}

// fileLimit is how many bytes files may hold: the size, or less if that is what can be promised.
func fileLimit(s *mm.Snapshot) uint64 {
	most := s.CommitLimit * mm.PageSize
	if s.Budget.Size > 0 {
		return min(s.Budget.Size, most)
	}
	return most
}

func vmstat(m *Mount) *Doc {
	s := m.Snapshot()
	c := &s.Counters
	d := new(Doc)
	line := func(key string, n uint64) { d.Plain(key, Count(n)) }
	// Linux's names, where they mean what they mean in Linux: nr_ in pages as of now, pgpgin and pgpgout in kB,
	// pswpin and pswpout in pages, pgfault with pgmajfault contained in it.
	line("nr_free_pages", s.Zeroed+s.Free)
	line("pgpgin", c.PagesInput*(mm.PageSize>>10))
	line("pgpgout", c.PagesOutput*(mm.PageSize>>10))
	line("pswpin", c.PagesInput)
	line("pswpout", c.PagesOutput)
	line("pgfault", c.PageFaults)
	line("pgmajfault", c.HardFaults)
	line("pgfree", c.PagesFreed)
	// Windows' meanings.
	line("page_faults", c.PageFaults)
	line("demand_zero_faults", c.DemandZeroFaults)
	line("write_copies", c.WriteCopies)
	line("transition_faults", c.TransitionFaults)
	line("hard_faults", c.HardFaults)
	line("collided_faults", c.CollidedFaults)
	line("page_reads", c.PageReads)
	line("pages_input", c.PagesInput)
	line("page_writes", c.PageWrites)
	line("pages_output", c.PagesOutput)
	for p, n := range c.Repurposed {
		line("repurposed_priority"+strconv.Itoa(p), n)
	}
	// Ours.
	line("hole_reads", c.HoleReads)
	line("pages_read_ahead", c.PagesReadAhead)
	line("read_ahead_hits", c.ReadAheadHits)
	line("bounced_reads", c.BouncedReads)
	line("direct_writes", c.DirectWrites)
	line("views", s.Views)
	line("views_mapped", c.ViewsMapped)
	line("views_trimmed", c.ViewsTrimmed)
	line("pages_trimmed", c.PagesTrimmed)
	line("pages_freed", c.PagesFreed)
	line("pages_stolen", c.PagesStolen)
	line("pages_emptied", c.PagesEmptied)
	line("pages_limited", c.PagesLimited)
	line("pages_zeroed", c.ZeroedPages)
	line("laundered", c.Laundered)
	line("invalidations", c.Invalidations)
	line("pages_compressed", c.PagesCompressed)
	line("pages_migrated", c.PagesMigrated)
	line("pages_combined", c.PagesCombined)
	line("pages_lost", c.PagesLost)
	line("sections", s.Sections)
	line("checksum_errors", c.ChecksumErrors)
	line("read_errors", c.ReadErrors)
	line("write_errors", c.WriteErrors)
	line("commit_refusals", c.CommitRefusals)
	line("refused_writes", c.RefusedWrites)
	if m.Violations != nil {
		line("dep_violations", m.Violations())
	}
	return d
}

// table adds a table whose rows are at hand.
func table(d *Doc, key string, columns []Column, rows ...[]Value) {
	d.Table(key, columns, func(yield func([]Value) bool) {
		for _, r := range rows {
			if !yield(r) {
				return
			}
		}
	})
}

func pagelists(m *Mount) *Doc {
	s := m.Snapshot()
	var rows [][]Value
	var total uint64
	list := func(name string, pages uint64) {
		rows = append(rows, []Value{Word(name), Count(pages), Count(pages * mm.PageSize)})
		total += pages
	}
	list("Zeroed", s.Zeroed)
	list("Free", s.Free)
	for p, n := range s.Standby {
		list("Standby"+strconv.Itoa(p), n)
	}
	list("Modified", s.Modified)
	list("ModifiedNoWrite", s.ModifiedNoWrite)
	list("Transition", s.Transition)
	list("Active", s.Active)
	list("Bad", s.Bad)
	list("Total", total)
	d := new(Doc)
	table(d, "lists", []Column{
		{Head: "List", Key: "list", Width: 15},
		{Head: "Pages", Key: "pages", Width: 10},
		{Head: "Bytes", Key: "bytes", Width: 14},
	}, rows...)
	return d
}

func pagefiles(m *Mount) *Doc {
	s := m.Snapshot()
	d := new(Doc)
	var rows [][]Value
	for _, f := range s.PageFiles {
		state := "open"
		if f.Removing {
			state = "leaving"
		}
		rows = append(rows, []Value{
			Count(uint64(f.Number)), Count(f.Max), Count(f.Size), Count(f.Used), Count(f.Peak), Count(f.Min), Count(f.Wiping),
			Count(uint64(f.Priority)), Word(state), Word(f.Name),
		})
	}
	table(d, "pagefiles", []Column{
		{Head: "Number", Key: "number", Width: 6},
		{Head: "Max", Key: "max_pages", Width: 10},
		{Head: "Size", Key: "size_pages", Width: 10},
		{Head: "Used", Key: "used_pages", Width: 10},
		{Head: "Peak", Key: "peak_pages", Width: 10},
		{Head: "Min", Key: "min_pages", Width: 10},
		{Head: "Wiping", Key: "wiping_pages", Width: 8},
		{Head: "Priority", Key: "priority", Width: 8},
		{Head: "State", Key: "state", Width: 7, Left: true},
		{Head: "Name", Key: "name"},
	}, rows...)
	if z := s.Compressed; z.Limit > 0 {
		d.Field("Compressed", "compressed_pages", Pages(z.Pages))
		d.Field("SameFilled", "same_filled_pages", Pages(z.Same)) // cost nothing
		d.Field("CompressedTo", "compressed_to_bytes", ByteCount(z.Bytes))
		d.Field("Memory", "memory_bytes", ByteCount(z.Memory))
		d.Field("Limit", "limit_bytes", ByteCount(z.Limit))
		d.Field("Rejected", "rejected_pages", Pages(z.Rejected))
		d.Field("Ratio", "ratio", compressionRatio(z))
	}
	return d
}

// compressionRatio is how many times the memory that it takes the compressed store's pages would take as they are.
func compressionRatio(z mm.CompressedInfo) Value {
	if z.Memory == 0 {
		return None()
	}
	return Hundredths(z.Pages * mm.PageSize * 100 / z.Memory)
}

// workingsets lists the system cache's working set and those of the processes.
func workingsets(m *Mount) *Doc {
	s := m.Snapshot()
	limits, _ := m.SystemCache()
	d := new(Doc)
	kind := func(hard bool) Value {
		if hard {
			return Word("hard")
		}
		return Word("soft")
	}
	cache := []Value{
		Word("SystemCache"), Count(s.HostPages), Count(s.HostLimit), Count(s.Views),
		Count(s.Counters.ViewsMapped), Count(s.Counters.ViewsTrimmed), Count(s.Counters.PagesTrimmed),
		Count(limits.Min), Word("soft"), Count(limits.Max), kind(limits.Hard || limits.Max == 0), None(), None(), None(),
	}
	d.Table("workingsets", []Column{
		{Head: "WorkingSet", Key: "workingset", Width: 12},
		{Head: "Pages", Key: "pages", Width: 10},
		{Head: "Limit", Key: "limit_pages", Width: 10},
		{Head: "Views", Key: "views", Width: 8},
		{Head: "ViewsMapped", Key: "views_mapped", Width: 12},
		{Head: "ViewsTrimmed", Key: "views_trimmed", Width: 12},
		{Head: "PagesTrimmed", Key: "pages_trimmed", Width: 12},
		{Head: "Min", Key: "minimum_pages", Width: 8},
		{Head: "MinKind", Key: "minimum_kind", Width: 7},
		{Head: "Max", Key: "maximum_pages", Width: 8},
		{Head: "MaxKind", Key: "maximum_kind", Width: 7},
		{Head: "Peak", Key: "peak_pages", Width: 8},
		{Head: "Locked", Key: "locked_pages", Width: 8},
		{Head: "Faults", Key: "page_faults", Width: 10},
	}, func(yield func([]Value) bool) {
		if !yield(cache) || m.Processes == nil {
			return
		}
		for _, p := range m.Processes() {
			c := p.MemoryInfo()
			low, high, flags := p.WorkingSetSize()
			hardMin, hardMax := flags&process.HardMinEnable != 0, flags&process.HardMaxEnable != 0
			limit := None()
			if hardMax {
				limit = Count(high >> mm.PageShift)
			}
			if !yield([]Value{Word(p.Folder), Count(c.WorkingSet >> mm.PageShift), limit, None(), None(), None(), None(),
				Count(low >> mm.PageShift), kind(hardMin), Count(high >> mm.PageShift), kind(hardMax),
				Count(c.PeakWorkingSet >> mm.PageShift), Count(c.Locked >> mm.PageShift), Count(c.PageFaults)}) {
				return
			}
		}
	})
	return d
}

// pressure has the kernel's form: percent of time, and microseconds.
func pressure(m *Mount) *Doc {
	s := m.Snapshot()
	d := new(Doc)
	for _, p := range []struct {
		name string
		mm.PressureInfo
	}{{"some", s.Some}, {"full", s.Full}} {
		line := []byte(p.name)
		for i, window := range []string{"avg10", "avg60", "avg300"} {
			share := Hundredths(uint64(math.Round(p.Avg[i] * 100)))
			line = share.appendText(append(line, " "+window+"="...), 0)
			d.Field("", p.name+"_"+window, share)
		}
		total := uint64(p.Total.Microseconds())
		d.Lines("", string(strconv.AppendUint(append(line, " total="...), total, 10)))
		d.Field("", p.name+"_total_usec", Count(total))
	}
	return d
}

func limits(m *Mount) *Doc {
	s := m.Snapshot()
	b := s.Budget
	d := new(Doc)
	d.Lines("", strings.Split(strings.TrimRight(b.String(), "\n"), "\n")...)
	for _, f := range []struct {
		key string
		n   uint64
	}{
		{"memory_bytes", b.Memory}, {"host_bytes", b.HostBytes}, {"host_dirty_bytes", b.HostDirty},
		{"pfn_bytes", b.PFNBytes}, {"frames", b.Frames}, {"reserve_frames", b.Reserve},
		{"pagefile_pages", b.PageFile}, {"slot_bytes", b.SlotBytes}, {"pte_bytes", b.PTEBytes},
		{"inodes_planned", b.Inodes}, {"inode_bytes", b.InodeMax}, {"commit_limit_pages", b.CommitLimit},
		{"size_bytes", b.Size},
		{"compressed_bytes", b.Compressed},
	} {
		d.Field("", f.key, Count(f.n))
	}
	d.Field("", "max_memory_bytes", Count(s.MaxMemory))
	if m.Inodes != nil {
		used, max := m.Inodes()
		d.Field("InodesUsed", "inodes_used", Count(used))
		d.Field("InodesMax", "inodes_max", Count(max))
	}
	return d
}

// maxFindings bounds what check says: one broken invariant may show at every page.
const maxFindings = 1000

func check(m *Mount) *Doc {
	found := m.Check()
	d := new(Doc)
	d.Field("", "ok", Flag(len(found) == 0))
	d.Field("", "found", Count(uint64(len(found))))
	if len(found) == 0 {
		d.Lines("", "ok")
	}
	lines := make([]string, 0, min(len(found), maxFindings))
	for _, err := range found[:min(len(found), maxFindings)] {
		lines = append(lines, oneLine(err))
	}
	d.Lines("findings", lines...)
	if len(found) > maxFindings {
		d.Lines("", strconv.Itoa(len(found)-maxFindings)+" more findings are not shown")
	}
	return d
}

func help(*Mount) *Doc {
	d := new(Doc)
	d.Table("files", []Column{
		{Head: "Mode", Key: "mode", Width: 4},
		{Head: "File", Key: "file", Width: 21},
		{Head: "What", Key: "what"},
	}, helpRows())
	d.Lines("", "", "A PROCESS is a folder that mkdir made, or self; sections/ has the named sections, as files.",
		"lowmemory and highmemory are pipes for poll(2): they have a line in them for as long as memory is low, or there is plenty.",
		"In vmstat, nr_, pages_ and psw… count pages, pgpgin and pgpgout kB, the others events; pgfault contains pgmajfault.",
		"NAME.json beside every NAME but ctl says the same as JSON.",
		"A name below files/ that itself begins with : and reads like a directory's control has one more : in front.",
		"map shows one character a page: A active, S standby, M modified, N modified but not to be written,",
		"T under I/O, P in a page file only, z promised but never written, . a hole; * stands for lines of holes.")
	return d
}

func helpRows() iter.Seq[[]Value] {
	return func(yield func([]Value) bool) {
		row := func(perm uint32, name, what string) bool {
			return yield([]Value{Word("0" + strconv.FormatUint(uint64(perm), 8)), Word(name), Word(what)})
		}
		for _, e := range Top {
			if !row(e.Perm, e.Name, e.Help) {
				return
			}
		}
		for _, e := range PerFile {
			perm := e.Perm
			if e.Residency { // and those who may write the file
				perm &= 0400
			}
			if !row(perm, "files/FILE/"+e.Name, e.Help) {
				return
			}
		}
		for _, e := range PerDir {
			if !row(e.Perm, "files/DIR/"+e.Name, e.Help) {
				return
			}
		}
		for _, e := range PerSpecial {
			if !row(e.Perm, "files/OTHER/"+e.Name, e.Help) {
				return
			}
		}
		for _, e := range PerProcess {
			if !row(e.Perm, "PROCESS/"+e.Name, e.Help) {
				return
			}
		}
		for _, e := range PerHeaps {
			if !row(e.Perm, "PROCESS/heaps/"+e.Name, e.Help) {
				return
			}
		}
		for _, e := range PerHeap {
			if !row(e.Perm, "PROCESS/heaps/N/"+e.Name, e.Help) {
				return
			}
		}
		for _, e := range PolicyHelp {
			if !row(0644, "policy/"+e[0], e[1]) {
				return
			}
		}
	}
}

// oneLine is an error's text on one line: joined errors have one each.
func oneLine(err error) string {
	return strings.ReplaceAll(strings.TrimSpace(err.Error()), "\n", "; ")
}
