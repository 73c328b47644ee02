package ctl

import (
	"iter"

	"memfs/mapping"
	"memfs/mm"
)

// PerFile is the table of the control files of a regular file, in its folder .proc/files/PATH.
var PerFile = []Entry[*RegularFile]{
	{Name: "info", Perm: 0444, Help: "how many pages the file has, and where they are", Render: fileInfo},
	{Name: "pages", Perm: 0444, Help: "one line a page: state, frame, priority, where its copy is, what brought it there", Render: pages, Residency: true},
	{Name: "map", Perm: 0444, Help: "one character a page, 64 a line", Render: pageMap, Residency: true},
	{Name: RuleProtection, Perm: 0644, Help: "shows and takes what may be done with the contents: a PAGE_ constant, or inherit",
		Render: func(f *RegularFile) *Doc { return protectionDoc(f.Protection) }},
	{Name: RulePriority, Perm: 0644, Help: "shows and takes the standby list that its pages wait on, 0 to 7",
		Render: func(f *RegularFile) *Doc { return priorityDoc(f.Rule()) }},
	{Name: RulePin, Perm: 0644, Help: "1 while it is pinned, else 0; takes them",
		Render: func(f *RegularFile) *Doc { return pinDoc(f.Rule()) }},
	{Name: RuleWorkingSet, Perm: 0644, Help: "shows and takes how many bytes of it may be in memory; 0 is no limit",
		Render: func(f *RegularFile) *Doc { return workingSetDoc(f.Rule()) }},
	{Name: "faults", Perm: 0444, Help: "the faults that were recorded, in order; cat it to a ctl to replay it", Render: faultList, Residency: true},
	{Name: "views", Perm: 0444, Help: "the sections over it, and the views of processes onto them", Render: fileViews, Residency: true},
	{Name: "ctl", Perm: 0600, Help: "takes the file's commands, a line each; write help for the list"},
}

// PerDir is the table of a directory's own controls in .proc/files/PATH. Their names begin with a colon, so that they
// stand apart from the directory's entries.
var PerDir = []Entry[*Directory]{
	{Name: ":info", Perm: 0444, Help: "the sums of info over the files below", Render: dirInfo},
	{Name: ":" + RuleProtection, Perm: 0644, Help: "shows and takes the protection of files that are made in the directory",
		Render: func(d *Directory) *Doc { return protectionDoc(d.Protection) }},
	{Name: ":" + RulePriority, Perm: 0644, Help: "the same of their priority",
		Render: func(d *Directory) *Doc { return priorityDoc(d.Rule) }},
	{Name: ":" + RulePin, Perm: 0644, Help: "1 if they are pinned, else 0; takes them",
		Render: func(d *Directory) *Doc { return pinDoc(d.Rule) }},
	{Name: ":" + RuleWorkingSet, Perm: 0644, Help: "the same of their working-set limit; each file has one of its own",
		Render: func(d *Directory) *Doc { return workingSetDoc(d.Rule) }},
	{Name: ":ctl", Perm: 0600, Help: "takes a file's commands, for all files below"},
}

// PerSpecial is the table of what is neither file nor directory: symlinks (which are not followed), fifos, sockets and
// devices have no pages of ours.
var PerSpecial = []Entry[*Stat]{
	{Name: "info", Perm: 0444, Help: "what it is; symlinks are not followed", Render: specialInfo},
}

// The JSON twins of the files that show one part of a rule; the files themselves read as they are written.

func protectionDoc(protection string) *Doc {
	d := new(Doc)
	d.Field("", RuleProtection, Word(protection))
	return d
}

func priorityDoc(r mm.Rule) *Doc {
	d := new(Doc)
	d.Field("", RulePriority, Count(uint64(r.Priority)))
	return d
}

func pinDoc(r mm.Rule) *Doc {
	d := new(Doc)
	d.Field("", RulePin, Flag(r.Pinned))
	return d
}

func workingSetDoc(r mm.Rule) *Doc {
	d := new(Doc)
	d.Field("", RuleWorkingSet+"_bytes", ByteCount(uint64(r.MaxResident)*mm.PageSize))
	return d
}

func statFields(d *Doc, s *Stat) {
	d.Field("Type", "type", Word(s.Type))
	d.Field("Inode", "inode", Count(s.Inode))
	d.Field("Links", "links", Count(s.Links))
}

func infoFields(d *Doc, i mapping.Info, blocks uint64) {
	pages := func(label, key string, n uint64) { d.Field(label, key+"_pages", Pages(n)) }
	d.Field("Size", "size_bytes", ByteCount(i.Size))
	d.Field("Blocks", "blocks", Count(blocks)) // of 512 bytes, as stat(1) counts them
	pages("Committed", "committed", i.Committed)
	pages("Active", "active", i.Active)
	pages("Standby", "standby", i.Standby)
	pages("Modified", "modified", i.Modified)
	pages("Transition", "transition", i.Transition)
	pages("Paged", "paged", i.Paged)
	pages("Compressed", "compressed", i.Compressed)
	pages("HostCached", "host_cached", i.HostCached)
	pages("Combined", "combined", i.Combined)
}

func fileInfo(f *RegularFile) *Doc {
	d := new(Doc)
	statFields(d, &f.Stat)
	infoFields(d, f.Info(), f.Blocks())
	ruleFields(d, f.Rule())
	if f.Protection != "" {
		d.Field("Protection", "protection", Word(f.Protection))
	}
	faults := f.Faults()
	d.Field("DemandZeroFaults", "demand_zero_faults", Count(faults.DemandZero))
	d.Field("SoftFaults", "soft_faults", Count(faults.Soft))
	d.Field("Refaults", "refaults", Count(faults.Hard)) // pages that had left memory and were read back
	areaFields(d, &f.Area)
	return d
}

func ruleFields(d *Doc, r mm.Rule) {
	d.Field("Priority", "priority", Count(uint64(r.Priority)))
	d.Field("Pinned", "pinned", Flag(r.Pinned))
	d.Field("NoSwap", "noswap", Flag(r.NoSwap))
	d.Field("WorkingSetMax", "working_set_max_pages", Pages(uint64(r.MaxResident))) // 0 is no limit
}

func dirInfo(dir *Directory) *Doc {
	d := new(Doc)
	statFields(d, &dir.Stat)
	d.Field("Files", "files", Count(dir.Files))
	d.Field("Directories", "directories", Count(dir.Directories))
	d.Field("Others", "others", Count(dir.Others))
	d.Field("Skipped", "skipped", Count(dir.Skipped))
	infoFields(d, dir.Sum, dir.Blocks)
	return d
}

func specialInfo(s *Stat) *Doc {
	d := new(Doc)
	statFields(d, s)
	return d
}

// maxPages is one more than the number of the last page that a file can have: 8 EiB of them.
const maxPages = 1 << (63 - mm.PageShift)

// pageBatch is how many pages are asked for at once, before any of them is rendered.
const pageBatch = 1024

// eachPage yields the existing pages of a file in order. The file is not held still for all of them: pages of one view are
// seen at one moment, as Linux's pagemap shows those of one page table.
func eachPage(f File) iter.Seq[mm.PageInfo] {
	return func(yield func(mm.PageInfo) bool) {
		var batch []mm.PageInfo
		for first := uint64(0); first < maxPages; {
			batch = batch[:0]
			f.EachPage(first, maxPages-first, func(p mm.PageInfo) bool {
				batch = append(batch, p)
				return len(batch) < pageBatch
			})
			for _, p := range batch {
				if !yield(p) {
					return
				}
			}
			if len(batch) < pageBatch {
				return
			}
			first = batch[len(batch)-1].Index + 1
		}
	}
}

// stateNames spells the letters of map out for pages.
var stateNames = map[byte]string{
	mm.StateZero:       "Hole",
	mm.StateCommitted:  "Committed",
	mm.StateActive:     "Active",
	mm.StateStandby:    "Standby",
	mm.StateModified:   "Modified",
	mm.StateNoWrite:    "ModifiedNoWrite",
	mm.StateTransition: "Transition",
	mm.StatePaged:      "Paged",
	mm.StateCompressed: "Compressed",
}

func pages(f *RegularFile) *Doc {
	d := new(Doc)
	d.Table("pages", []Column{
		{Head: "Index", Key: "index", Width: 10},
		{Head: "State", Key: "state", Width: 15},
		{Head: "Frame", Key: "frame", Width: 9},
		{Head: "Priority", Key: "priority", Width: 8},
		{Head: "Dirty", Key: "dirty", Width: 5},
		{Head: "Host", Key: "host", Width: 4},
		{Head: "PageFile", Key: "pagefile", Width: 8},
		{Head: "Slot", Key: "slot", Width: 10},
		{Head: "Sharers", Key: "sharers", Width: 7},
		{Head: "Why", Key: "why"},
	}, func(yield func([]Value) bool) {
		orNone := func(n int64) Value {
			if n < 0 {
				return None()
			}
			return Count(uint64(n))
		}
		row := make([]Value, 10)
		for p := range eachPage(f.File) {
			state, ok := stateNames[p.State]
			if !ok {
				state = string(rune(p.State))
			}
			row[0], row[1], row[2], row[3] = Count(p.Index), Word(state), orNone(p.Frame), None()
			if p.Frame >= 0 {
				row[3] = Count(uint64(p.Priority))
			}
			row[4], row[5], row[6], row[7] = Flag(p.Dirty), Flag(p.Host), orNone(int64(p.PageFile)), orNone(p.Slot)
			row[8] = Count(uint64(p.Sharers))
			if row[9] = None(); p.Why != "" {
				row[9] = Word(p.Why)
			}
			if !yield(row) {
				return
			}
		}
	})
	return d
}

// mapLine is how many pages a line of map shows.
const mapLine = 64

// pageMap shows every page of the file and every page that it has beyond its end. There is no header line: whoever
// counts letters shall count pages. All digits are lower case and all states but two of the rarest upper case or
// punctuation for the same reason.
func pageMap(f *RegularFile) *Doc {
	size := (f.Info().Size + mm.PageSize - 1) >> mm.PageShift // in pages
	d := new(Doc)
	width := 8
	for n := size >> 32; n > 0; n >>= 4 {
		width++
	}
	d.Table("map", []Column{{Key: "first_page", Width: width}, {Key: "pages"}}, mapRows(f.File, size))
	return d
}

// mapRows yields the lines of a map. Of several lines of holes in a row only the first and the last one of the file are
// shown, the rest is one empty row: an empty file of 8 EiB would have 35 million million lines.
func mapRows(f File, size uint64) iter.Seq[[]Value] {
	return func(yield func([]Value) bool) {
		var next uint64 // the first line not yielded yet
		line := func(n uint64, states []byte) bool {
			next = n + 1
			return yield([]Value{Hex(n * mapLine), Word(string(states))})
		}
		var blank [mapLine]byte
		for i := range blank {
			blank[i] = mm.StateZero
		}
		// inFile is how many pages of line n are in the file.
		inFile := func(n uint64) int {
			if n*mapLine >= size {
				return 0
			}
			return int(min(mapLine, size-n*mapLine))
		}
		// holes yields the lines [next, n), all of holes.
		holes := func(n uint64) bool {
			if next == 0 && n > 0 && !line(0, blank[:]) {
				return false
			}
			switch {
			case next+1 == n:
				return line(next, blank[:])
			case next < n:
				next = n
				return yield(nil)
			}
			return true
		}

		current, length, have := uint64(0), 0, false
		var states [mapLine]byte
		for p := range eachPage(f) {
			if n := p.Index / mapLine; !have || n != current {
				if have && !line(current, states[:]) {
					return
				}
				if !holes(n) {
					return
				}
				current, have, states, length = n, true, blank, inFile(n)
			}
			at := int(p.Index % mapLine)
			states[at] = p.State
			length = max(length, at+1)
		}
		if have && !line(current, states[:length]) {
			return
		}
		if size == 0 || next > (size-1)/mapLine {
			return
		}
		last := (size - 1) / mapLine
		if holes(last) {
			line(last, blank[:inFile(last)])
		}
	}
}
