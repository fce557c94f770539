class Account:
    def __init__(self, balance=0):
        self.balance = balance

    def withdraw(self, amount):
        self.balance -= amount
        if self.balance < 0:
            raise ValueError("not enough money")

    def transfer(self, other, amount):
        other.balance += amount
        self.withdraw(amount)
