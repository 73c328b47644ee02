package fs

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"memfs/fs/ctl"
	"memfs/mm"
)

// Who filled the mount, and who makes it fault. A READ carries the thread that faults. What programs wrote into the host's
// cache comes without one, so a file's dirty pages are whose who last opened it for writing; a file belongs to whom it was
// written by last. No request looks anything up: which process a thread is of, and whether it lives, is found out when
// owners is read.
//
// Locks: ownerTable.mu is a leaf.

// Bounds on what is kept apart. Threads beyond are added to their user, users beyond to a rest.
const (
	maxThreads = 1024
	maxUsers   = 256
)

// thread is who asks, as a request names it. It fits a word, so that a node can keep it.
type thread uint64

func threadOf(c *fuse.Caller) thread { return thread(c.Uid)<<32 | thread(c.Pid) }
func (t thread) uid() uint32         { return uint32(t >> 32) }
func (t thread) tid() uint32         { return uint32(t) }

// activity is what was done for somebody.
type activity struct{ soft, hard, read, written atomic.Uint64 }

func (a *activity) addTo(o *ctl.Owner) {
	o.Soft += a.soft.Load()
	o.Hard += a.hard.Load()
	o.Read += a.read.Load()
	o.Written += a.written.Load()
}

func (a *activity) add(o *activity) {
	a.soft.Add(o.soft.Load())
	a.hard.Add(o.hard.Load())
	a.read.Add(o.read.Load())
	a.written.Add(o.written.Load())
}

// account is what one thread did.
type account struct {
	activity
	born uint64        // ticks since the host was started
	used atomic.Uint64 // turn of the table at the last request
}

// ownerTable is what is known of who does what.
type ownerTable struct {
	turn atomic.Uint64

	mu sync.RWMutex
	// +checklocks:mu
	threads map[thread]*account
	// +checklocks:mu
	users map[uint32]*activity // what their threads did that are no longer kept apart
	// +checklocks:mu
	rest activity // of further users
}

func (t *ownerTable) init() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.threads, t.users = make(map[thread]*account), make(map[uint32]*activity)
}

// account is the account of a thread, opened if need be.
func (t *ownerTable) account(who thread) *account {
	t.mu.RLock()
	a := t.threads[who]
	t.mu.RUnlock()
	if a == nil {
		a = t.open(who)
	}
	if turn := t.turn.Load(); a.used.Load() != turn {
		a.used.Store(turn)
	}
	return a
}

func (t *ownerTable) open(who thread) *account {
	turn := t.turn.Add(1)
	t.mu.Lock()
	defer t.mu.Unlock()
	if a := t.threads[who]; a != nil {
		return a
	}
	if len(t.threads) >= maxThreads {
		t.closeOldestLocked()
	}
	a := &account{born: ticksSinceBoot()}
	a.used.Store(turn)
	t.threads[who] = a
	return a
}

// closeOldestLocked adds the quarter of the accounts that were used longest ago to their users'.
// +checklocks:t.mu
func (t *ownerTable) closeOldestLocked() {
	all := make([]thread, 0, len(t.threads))
	for who := range t.threads {
		all = append(all, who)
	}
	used := make(map[thread]uint64, len(all)) // as of one moment, which sorting needs
	for _, who := range all {
		used[who] = t.threads[who].used.Load()
	}
	slices.SortFunc(all, func(a, b thread) int { return cmp.Compare(used[a], used[b]) })
	for _, who := range all[:len(all)/4] {
		t.userLocked(who.uid()).add(&t.threads[who].activity)
		delete(t.threads, who)
	}
}

// +checklocks:t.mu
func (t *ownerTable) userLocked(uid uint32) *activity {
	u := t.users[uid]
	switch {
	case u != nil:
	case len(t.users) >= maxUsers:
		u = &t.rest
	default:
		u = new(activity)
		t.users[uid] = u
	}
	return u
}

// read books a READ that was answered.
func (t *ownerTable) read(c *fuse.Caller, soft, hard uint64, n int) {
	a := t.account(threadOf(c))
	a.soft.Add(soft)
	a.hard.Add(hard)
	a.read.Add(uint64(n))
}

// opened notes who may dirty the file from now on.
func (n *node) openedBy(c *fuse.Caller) { n.dirtier.Store(uint64(threadOf(c))) }

// wrote books a WRITE: the program's own, or one from the host's cache.
func (n *node) wrote(in *fuse.WriteIn, size int) {
	who := thread(n.dirtier.Load())
	if in.WriteFlags&fuse.WRITE_CACHE == 0 && in.Pid != 0 {
		who = threadOf(&in.Caller)
	}
	if n.filler.Load() != uint64(who) {
		n.filler.Store(uint64(who))
	}
	n.fs.owners.account(who).written.Add(uint64(size))
}

// liveProcess is the process that a thread is of.
type liveProcess struct {
	pid  uint64
	comm string
}

// processOf finds the process of a thread; nil if it has ended, or the number is another one's by now.
func processOf(tid uint32, born uint64) *liveProcess {
	dir := fmt.Sprintf("/proc/%d/", tid)
	stat, err := os.ReadFile(dir + "stat")
	if err != nil {
		return nil
	}
	// The name stands in parentheses and may hold any byte; the start time is the 20th field behind it.
	open, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	if open < 0 || end < open {
		return nil
	}
	fields := strings.Fields(string(stat[end+1:]))
	if len(fields) < 20 {
		return nil
	}
	if start, err := strconv.ParseUint(fields[19], 10, 64); err != nil || start > born {
		return nil
	}
	p := &liveProcess{pid: uint64(tid), comm: string(stat[open+1 : end])}
	status, err := os.ReadFile(dir + "status")
	if err != nil {
		return nil
	}
	if _, after, ok := strings.Cut(string(status), "\nTgid:"); ok {
		line, _, _ := strings.Cut(after, "\n")
		if pid, err := strconv.ParseUint(strings.TrimSpace(line), 10, 64); err == nil {
			p.pid = pid
		}
	}
	if p.pid != uint64(tid) {
		if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", p.pid)); err == nil {
			p.comm = strings.TrimSuffix(string(comm), "\n")
		}
	}
	return p
}

// ticksSinceBoot is the time in the unit of /proc/PID/stat, rounded up: nobody's request comes before its start.
func ticksSinceBoot() uint64 {
	const ticks = 100 // USER_HZ, the same on every machine that Go runs on
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) != nil {
		return ^uint64(0)
	}
	return uint64(ts.Sec)*ticks + uint64(ts.Nsec)/(1e9/ticks) + 1
}

// ownerList is owners being put together.
type ownerList struct {
	users     map[uint32]*ctl.Owner
	processes map[uint64]*ctl.Owner // that are alive
	rest      *ctl.Owner
	threads   map[thread]uint64 // the process of a thread that has an account and is alive
	largest   map[*ctl.Owner]largestFile
}

type largestFile struct {
	pages uint64
	node  *node
}

// listOwners lists who did what: each user, behind it his processes, by what they have filled.
func (f *fileSystem) listOwners(processes *processTable) []ctl.Owner {
	l := &ownerList{
		users: make(map[uint32]*ctl.Owner), processes: make(map[uint64]*ctl.Owner),
		threads: make(map[thread]uint64), largest: make(map[*ctl.Owner]largestFile),
	}
	l.addAccounts(&f.owners)
	f.nodes.each(l.addFile)
	for o, largest := range l.largest {
		o.Largest = fileOf(largest.node).Name
	}
	for _, s := range processes.all() {
		if u := l.user(s.owner.Uid); u != nil {
			u.Holdings.Add(s.process().Holdings())
		}
	}
	var list []ctl.Owner
	for _, u := range sortedOwners(l.users) {
		list = append(list, *u)
		for _, p := range sortedOwners(l.processes) {
			if p.UID == u.UID {
				list = append(list, *p)
			}
		}
		for _, s := range processes.all() {
			if s.owner.Uid == u.UID && !s.system {
				list = append(list, ctl.Owner{Kind: "simulated", UID: u.UID, Pid: uint64(s.process().ID()), Comm: s.name,
					Holdings: s.process().Holdings()})
			}
		}
	}
	if l.rest != nil {
		list = append(list, *l.rest)
	}
	return list
}

func sortedOwners[K cmp.Ordered](m map[K]*ctl.Owner) []*ctl.Owner {
	all := make([]*ctl.Owner, 0, len(m))
	for _, o := range m {
		all = append(all, o)
	}
	slices.SortFunc(all, func(a, b *ctl.Owner) int {
		return cmp.Or(-cmp.Compare(a.Holdings.Committed, b.Holdings.Committed), -cmp.Compare(a.Written+a.Read, b.Written+b.Read),
			cmp.Compare(a.UID, b.UID), cmp.Compare(a.Pid, b.Pid))
	})
	return all
}

// user is the line of a user.
func (l *ownerList) user(uid uint32) *ctl.Owner {
	u := l.users[uid]
	switch {
	case u != nil:
	case len(l.users) < maxUsers:
		u = &ctl.Owner{Kind: "user", UID: uid}
		l.users[uid] = u
	default:
		if l.rest == nil {
			l.rest = &ctl.Owner{Kind: "user", Rest: true}
		}
		u = l.rest
	}
	return u
}

func (l *ownerList) addAccounts(t *ownerTable) {
	type entry struct {
		who thread
		*account
	}
	var all []entry
	t.mu.RLock()
	for who, a := range t.threads {
		all = append(all, entry{who, a})
	}
	for uid, a := range t.users {
		a.addTo(l.user(uid))
	}
	var rest ctl.Owner
	t.rest.addTo(&rest)
	t.mu.RUnlock()
	if rest.Read+rest.Written > 0 {
		rest.Kind, rest.Rest = "user", true
		l.rest = &rest
	}
	for _, e := range all {
		e.addTo(l.user(e.who.uid()))
		p := processOf(e.who.tid(), e.born)
		if p == nil {
			continue
		}
		l.threads[e.who] = p.pid
		o := l.processes[p.pid]
		if o == nil {
			o = &ctl.Owner{Kind: "process", UID: e.who.uid(), Pid: p.pid, Comm: p.comm}
			l.processes[p.pid] = o
		}
		e.addTo(o)
	}
}

// addFile adds a file to those who filled it. One that nobody wrote, but has space promised, is its owner's.
func (l *ownerList) addFile(n *node) {
	if !n.isRegular() {
		return
	}
	h := n.section.Holdings()
	if h == (mm.Holdings{}) {
		return
	}
	who := thread(n.filler.Load())
	uid := who.uid()
	if who == 0 {
		uid = n.attr().Uid
	}
	lines := []*ctl.Owner{l.user(uid)}
	if p := l.processes[l.threads[who]]; p != nil {
		lines = append(lines, p)
	}
	for _, o := range lines {
		o.Files++
		o.Holdings.Add(h)
		if largest, ok := l.largest[o]; !ok || h.Committed > largest.pages {
			l.largest[o] = largestFile{h.Committed, n}
		}
	}
}
